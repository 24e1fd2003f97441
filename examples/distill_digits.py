"""Distil a ResNet-20 into a ResNet-8 that sees ten labelled images of each digit: a minute on two cores.

python examples/distill_digits.py
"""

import torch

from cka_probe.distill import Diagnostics, RCKALoss, digits, distill
from cka_probe.distill.models import build


def main(teacher_epochs: int = 8, student_epochs: int = 60) -> None:
    all_labels, test = digits(size=16)
    few_labels, _ = digits(size=16, train_per_class=10)

    # A teacher is trained by the same function, without a teacher of its own.
    torch.manual_seed(0)
    teacher = build("resnet20", num_classes=10)
    print(distill(None, teacher, all_labels, test, epochs=teacher_epochs))

    # The paper's weights, 15 for the logits' terms, are for runs of 188,000 steps; this one has 120.
    for name, loss in {"labels alone": None, "RCKA": RCKALoss(intra_weight=1, inter_weight=1)}.items():
        torch.manual_seed(0)  # the same student at the start
        student = build("resnet8", num_classes=10)
        result = distill(
            None if loss is None else teacher,
            student,
            few_labels,
            test,
            loss,  # the layers whose features it compares are the stages of both networks
            epochs=student_epochs,
            batch_size=50,
            diagnostics=None if loss is None else Diagnostics(every=20),
            # output_dir="runs/digits" would save weights, history and checkpoints, and go on from them when killed
        )
        print(f"{name}: {result}")

    print(result.diagnostics.query("quantity == 'cka'").pivot(index="epoch", columns="first", values="value"))


if __name__ == "__main__":
    main()
