"""Distill one detector into a smaller one with PCKA on their feature pyramids.

python examples/distill_detector.py                     digits on photographs: about five minutes on two cores
python examples/distill_detector.py --coco COCO --row fcos_r101_r50 --teacher teacher.safetensors
                                                        a row of the paper, on a GPU: COCO holds train2017, val2017 and
                                                        annotations
"""

import argparse
from pathlib import Path

import torch
from torchvision.models.detection.fcos import FCOSHead

from cka_probe.distill import CosineDecay
from cka_probe.distill.dense import (
    PAPER_ROWS,
    CocoBoxes,
    PatchCKALoss,
    average_precision,
    detector,
    distill_detector,
    make_scenes,
    small_pyramid,
)
from cka_probe.distill.models import load_weights


def on_scenes(folder: Path, teacher_steps: int, student_steps: int, size: int = 96) -> None:
    scenes = make_scenes(
        folder / "scenes", train=1024, val=128, size=size, most=8, smallest=22, largest=32, contrast=0.75
    )
    train = CocoBoxes(scenes.train_images, scenes.train_annotations)
    test = CocoBoxes(scenes.val_images, scenes.val_annotations)
    options = {"learning_rate": 3e-3, "optimizer": torch.optim.AdamW, "schedule": CosineDecay(warmup=15)}

    def network(width: int, blocks: int) -> torch.nn.Module:
        torch.manual_seed(0)  # every student starts with the same weights
        head = FCOSHead(64, 1, len(train.classes), num_convs=blocks)
        pyramid = small_pyramid(width, blocks, channels=64)
        return detector("fcos", pyramid, len(train.classes), head=head, min_size=size, max_size=size)

    teacher = network(32, 2)
    result = distill_detector(None, teacher, train, test, steps=teacher_steps, **options)
    print_scores("teacher", result.scores)

    losses = {"alone": None, "PCKA": PatchCKALoss(intra_weight=1)}
    losses["PCKA + mimic"] = PatchCKALoss(intra_weight=1, mimic_weight=0.1)
    pictures = torch.stack([test[index][0] for index in range(8)])
    for name, loss in losses.items():
        student = network(8, 1)
        result = distill_detector(
            None if loss is None else teacher,
            student,
            train,
            test,
            loss,
            steps=student_steps,
            output_dir=folder / name.replace(" ", ""),
            **options,
        )
        print_scores(name, result.scores)
        maps = [list(model.eval().backbone(pictures).values()) for model in (student, teacher)]
        for level in PatchCKALoss().report(*maps):
            print(
                "    level {level}: {patches} patches of {patch} x {patch}, CKA with the teacher {intra:.2f}, "
                "by chance {intra_chance:.2f}".format(**level)
            )


def print_scores(name: str, scores: dict[str, float]) -> None:
    print(f"{name}: " + ", ".join(f"{key} {scores[key]:.3f}" for key in ("AP", "AP50", "AP75")), flush=True)


def on_coco(coco: Path, name: str, weights: Path, folder: Path, steps: int | None, mimic: float, workers: int) -> None:
    row = PAPER_ROWS[name]
    train = CocoBoxes(coco / "train2017", coco / "annotations" / "instances_train2017.json", flip=0.5)
    test = CocoBoxes(coco / "val2017", coco / "annotations" / "instances_val2017.json")
    teacher = detector(row.architecture, row.teacher, len(train.classes))
    load_weights(teacher, weights)
    print(f"teacher: {average_precision(teacher.to('cuda' if torch.cuda.is_available() else 'cpu'), test)}")
    student = detector(row.architecture, row.student, len(train.classes))
    result = distill_detector(
        teacher,
        student,
        train,
        test,
        PatchCKALoss(intra_weight=row.intra_weight, inter_weight=row.inter_weight, mimic_weight=mimic),
        steps=steps or row.epochs * len(train) // 16,
        batch_size=16,
        learning_rate=row.learning_rate,
        mixed_precision="bf16" if torch.cuda.is_available() else "no",
        workers=workers,
        output_dir=folder / name,
    )
    print(f"{name}: {result.scores}")
    print(
        f"in the paper, with pretrained backbones: {row.student_ap} alone, {row.distilled_ap} with PCKA, "
        f"{row.mimic_ap} with PCKA and mimic"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, help="folder of COCO, instead of scenes")
    parser.add_argument("--row", choices=PAPER_ROWS, default="fcos_r101_r50", help="row of the paper's table")
    parser.add_argument("--teacher", type=Path, help="file of the teacher's weights, for COCO (80 classes)")
    parser.add_argument("--output", type=Path, default=Path("runs/detector"))
    parser.add_argument("--teacher-steps", type=int, default=600, help="steps of the teacher, on scenes")
    parser.add_argument("--steps", type=int, help="steps of a student; 300 on scenes, 24 epochs on COCO")
    parser.add_argument("--mimic", type=float, default=0.0, help="weight of plain feature imitation, for COCO")
    parser.add_argument("--workers", type=int, default=4, help="number of processes that load COCO")
    options = parser.parse_args()
    if options.coco is None:
        on_scenes(options.output, options.teacher_steps, options.steps or 300)
    elif options.teacher is None:
        parser.error("--coco needs --teacher: without weights there is nothing to learn from")
    else:
        on_coco(
            options.coco,
            options.row,
            options.teacher,
            options.output,
            options.steps,
            options.mimic,
            options.workers,
        )
