"""Distill a small language model by the CKA of its hidden states, on the text of this repository.

python examples/distill_language_model.py [--steps 300]

Both models start from a config with random weights, so nothing is downloaded: a teacher of 4 layers of width 64 and a
student of 2 layers of width 32, over the characters of README.md and docs/. From the same start, the student is trained
on the text alone, and on the text and the teacher's hidden states. Padded positions are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cka_probe.distill import Outputs
from cka_probe.distill.losses.hidden_states import HiddenStateCKALoss

ROOT = Path(__file__).parents[1]
LENGTH, PAGE = 64, 512


def characters() -> tuple[torch.Tensor, torch.Tensor]:
    """Character codes of this repository's text (1 to 95; 0 is padding): to train on, and every tenth page to test."""
    text = "".join(p.read_text(encoding="utf-8") for p in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))])
    codes = torch.tensor([ord(c) - 31 if 32 <= ord(c) < 127 else 1 for c in text])
    pages = codes.split(PAGE)
    return torch.cat([page for i, page in enumerate(pages) if i % 10]), torch.cat(pages[::10])


def batch(codes: torch.Tensor, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Passages of different lengths (size, LENGTH), padded on the right, and their attention mask."""
    starts = torch.randint(0, len(codes) - LENGTH, (size,), generator=generator)
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (size,), generator=generator)
    positions = torch.arange(LENGTH)
    mask = (positions < lengths[:, None]).long()
    return codes[starts[:, None] + positions] * mask, mask


def network(width: int, depth: int) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=96,
            n_positions=LENGTH,
            n_embd=width,
            n_layer=depth,
            n_head=4,
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def text_loss(logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy (nats) of the next character over real positions."""
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    real = mask[:, 1:].flatten()
    return (losses * real).sum() / real.sum()


def train(
    model: GPT2LMHeadModel, codes: torch.Tensor, steps: int, teacher: GPT2LMHeadModel | None = None, weight: float = 1.0
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    loss_of_states = HiddenStateCKALoss(weight)
    generator = torch.Generator().manual_seed(1)
    model.train()
    for _ in range(steps):
        ids, mask = batch(codes, 16, generator)
        output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        loss = text_loss(output.logits, ids, mask)
        if teacher is not None:
            with torch.no_grad():
                states = teacher(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
            loss = loss + loss_of_states(Outputs(features=output.hidden_states[1:], mask=mask), states[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def bits_per_character(model: GPT2LMHeadModel, codes: torch.Tensor) -> float:
    ids, mask = batch(codes, 64, torch.Generator().manual_seed(2))
    with torch.no_grad():
        return (
            float(text_loss(model(input_ids=ids, attention_mask=mask).logits, ids, mask))
            / torch.log(torch.tensor(2.0)).item()
        )


def main(steps: int, seeds: int = 3) -> dict[str, list[float]]:
    train_text, held_out = characters()
    torch.manual_seed(0)
    teacher = network(64, 4)
    train(teacher, train_text, 4 * steps)
    print(f"teacher                            {bits_per_character(teacher, held_out):.3f} bits per character")
    found: dict[str, list[float]] = {"text alone": [], "text and hidden states": []}
    for seed in range(seeds):
        for name, taught in (("text alone", None), ("text and hidden states", teacher)):
            torch.manual_seed(seed)
            student = network(32, 2)
            train(student, train_text, steps, taught)
            found[name].append(bits_per_character(student, held_out))
    for name, values in found.items():
        print(f"student, {name:24} {sum(values) / len(values):.3f}  {', '.join(f'{v:.3f}' for v in values)}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().steps)
