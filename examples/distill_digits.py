"""Distill a ResNet-20 into a ResNet-8 that sees ten labelled images of each digit: a minute on two cores.

python examples/distill_digits.py
"""

import torch

from cka_probe.distill import Diagnostics, RCKALoss, digits, distill
from cka_probe.distill.models import build


def main(teacher_epochs: int = 8, student_epochs: int = 60) -> None:
    all_labels, test = digits(size=16)
    few_labels, _ = digits(size=16, train_per_class=10)

    # The same function trains the teacher: without a teacher it uses the labels alone.
    torch.manual_seed(0)
    teacher = build("resnet20", num_classes=10)
    print(distill(None, teacher, all_labels, test, epochs=teacher_epochs))

    # Weights of 15 for the logit terms are for long runs (188,000 steps); this run has 120 steps.
    for name, loss in {"labels alone": None, "RCKA": RCKALoss(intra_weight=1, inter_weight=1)}.items():
        torch.manual_seed(0)  # both runs start from the same student
        student = build("resnet8", num_classes=10)
        result = distill(
            None if loss is None else teacher,
            student,
            few_labels,
            test,
            loss,  # by default it compares the stages of both networks
            epochs=student_epochs,
            batch_size=50,
            diagnostics=None if loss is None else Diagnostics(every=20),
            # output_dir="runs/digits" saves weights, history and checkpoints; a killed run continues from them
        )
        print(f"{name}: {result}")

    print(result.diagnostics.query("quantity == 'cka'").pivot(index="epoch", columns="first", values="value"))


if __name__ == "__main__":
    main()
