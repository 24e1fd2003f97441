"""Feature maps cut into patches, and the small matrix products that a patchwise CKA is made of.

A map (B, C, H, W) becomes a stack X (L, n, m): for each of L slices, n patches with m entries each.

relation    L slices          n       m entries of a patch
"patch"     channels C        patches B p p        the paper's default
"sample"    samples B         patches C p p        channels may differ between the networks
"pixel"     places p p        patches B C          channels may differ between the networks

Intra aligns the n x n Gram matrices over patches, inter the m x m ones over entries, which are never formed:
<X'X, Y'Y> = ||X Y'||^2 (PAPER.md, Cost).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["RELATIONS", "PatchProducts", "patch_products", "patch_size", "patch_stack", "resized", "stack_shape"]

# The axes b, c, u, h, v, w of a map cut into u x v patches of h x w pixels, in the order (slices, patches, entries).
AXES = {"patch": (1, 2, 4, 0, 3, 5), "sample": (0, 2, 4, 1, 3, 5), "pixel": (3, 5, 2, 4, 0, 1)}
RELATIONS = tuple(AXES)

# Entries of a stack that are worked on at a time, on a GPU and on a CPU: there to fill it, here to stay in its cache.
CHUNK = (2**26, 2**20)


def patch_size(height: int, width: int, patch: int, minimum: int) -> int:
    """The side of the patches for a map: ``patch``, halved until there are at least ``minimum`` patches, or 1.

    Parameters
    ----------
    height, width : int
        Of the map.
    patch : int
        The largest side.
    minimum : int
        The least number of patches wanted.

    Returns
    -------
    int
        Between 1 and ``patch``.

    Examples
    --------
    >>> [patch_size(h, w, 16, 16) for h, w in ((128, 160), (64, 80), (32, 40), (16, 20), (2, 2))]
    [16, 16, 8, 4, 1]
    """
    while patch > 1 and -(-height // patch) * -(-width // patch) < minimum:
        patch //= 2
    return patch


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """The map at this size, bilinear; itself where it has it already."""
    if tuple(x.shape[2:]) == (height, width):
        return x
    return functional.interpolate(x, (height, width), mode="bilinear", align_corners=False)


def _cut(x: Tensor, patch: int, relation: str) -> tuple[Tensor, tuple[int, int, int]]:
    """A view of the map with its axes in the order of the relation, and (L, n, m)."""
    u, v = x.shape[2] // patch, x.shape[3] // patch
    view = x.unflatten(2, (u, patch)).unflatten(4, (v, patch)).permute(AXES[relation])
    slices = view.shape[0] if relation != "pixel" else patch * patch
    return view, (slices, u * v, x.numel() // (slices * u * v))


def stack_shape(x: Tensor, patch: int, relation: str) -> tuple[int, int, int]:
    """(L, n, m) of the stack of a map whose sides are multiples of ``patch``."""
    return _cut(x, patch, relation)[1]


def patch_stack(x: Tensor, patch: int, relation: str) -> Tensor:
    """The stack X (L, n, m) of a map whose sides are multiples of ``patch``; one copy.

    Examples
    --------
    >>> import torch
    >>> x = torch.arange(16.0).view(1, 1, 4, 4)
    >>> patch_stack(x, 2, "patch")[0, 1].tolist()
    [2.0, 3.0, 6.0, 7.0]
    """
    view, shape = _cut(x, patch, relation)
    return view.reshape(shape)


class PatchProducts(NamedTuple):
    """The small matrices (L, n, n) of student x and teacher y, and what tells a constant slice from rounding."""

    gram_x: Tensor
    """Over patches, centred where asked for."""
    gram_y: Tensor
    inner_x: Tensor
    """X X' with centred rows, for inter; empty where inter is not wanted."""
    inner_y: Tensor
    cross: Tensor
    """X Y' with centred rows."""
    floors: tuple[Tensor, Tensor]
    """Traces (L,) of ``gram_x`` and ``gram_y`` at or below these are rounding."""
    inner_floors: tuple[Tensor, Tensor]
    """The same for ``inner_x`` and ``inner_y``."""


def patch_products(x: Tensor, y: Tensor, patch: int, relation: str, *, centred: bool, inter: bool) -> PatchProducts:
    """The products of all slices, as batched products, without a copy of the maps.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Student's map; H and W are multiples of ``patch``.
    y : Tensor (B, C', H, W)
        Teacher's map, float dtype of ``x``; it gets no gradient. C' = C for relation "patch".
    patch : int
        Side of the patches.
    relation : "patch", "sample" or "pixel"
        What a slice is.
    centred : bool
        Whether patches are centred for ``gram`` and entries for ``inner``.
    inter : bool
        Whether ``inner`` and ``cross`` are wanted.

    Returns
    -------
    PatchProducts
        Gradients flow to ``x``, first derivatives only.

    Notes
    -----
    With X = W + s 1' + 1 mu', where W is centred both ways, s are the centred patch means and mu the mean patch, one
    product gives both centrings, and no subtraction loses digits: over patches W W' + m s s', over entries
    T (W; mu')(V; nu')' T' with T = (I, 1) and mu and nu without their means.
    """
    gram_x, means_x, gram_y, means_y, cross, size_x, size_y = _Products.apply(
        x, y, _Options(patch, relation, centred, inter)
    )
    _, (_, n, m) = _cut(x, patch, relation)
    # What rounding leaves of a constant slice, whose size is that of its mean patch, or of its patch means.
    eps = (16 * torch.finfo(x.dtype).eps) ** 2
    floors = (n * eps * size_x, n * eps * size_y)
    if not inter or not centred:
        inner = (gram_x, gram_y, cross) if inter else (cross, cross, cross)
        return PatchProducts(gram_x, gram_y, *inner, floors, floors)
    over_x, over_y = (
        gram[:, :n, :n] + m * means[:, :n, None] * means[:, None, :n]
        for gram, means in ((gram_x, means_x), (gram_y, means_y))
    )
    levels = [(means[:, :n] + means[:, n:]).detach().square().sum(1) for means in (means_x, means_y)]
    return PatchProducts(
        over_x,
        over_y,
        _spread(gram_x, n),
        _spread(gram_y, n),
        _spread(cross, n),
        floors,
        (m * eps * levels[0], m * eps * levels[1]),
    )


def _spread(product: Tensor, n: int) -> Tensor:
    """T P T' with T = (I, 1): what belongs to the mean patch, the last row and column, goes to all patches."""
    return product[:, :n, :n] + product[:, :n, n:] + product[:, n:, :n] + product[:, n:, n:]


class _Options(NamedTuple):
    patch: int
    relation: str
    centred: bool
    inter: bool


class _Operand(NamedTuple):
    """Some slices as products are taken of them: (l, n, m), or (l, n + 1, m) with the mean patch as the last row."""

    slices: slice
    stack: Tensor
    means: Tensor
    """Of the rows (l, n or n + 1), taken off when both centrings are wanted; else zeros."""
    size: Tensor
    """Squared norms (l,) of the mean patches; zeros where nothing is centred."""


def _operands(z: Tensor, options: _Options) -> Iterator[_Operand]:
    """The operands, some slices at a time, for use before the next ones are asked for.

    One buffer serves all slices and stays in the cache: a copy of the whole map would cost more time than the products,
    and as much memory as the map again.
    """
    view, (slices, n, m) = _cut(z, options.patch, options.relation)
    first = 2 if options.relation == "pixel" else 1
    inner = slices // len(view)
    step = max(1, CHUNK[z.device.type == "cpu"] // (inner * n * m))
    extra = int(options.centred and options.inter)
    buffer = z.new_empty(min(step, len(view)) * inner, n + extra, m)
    for start in range(0, len(view), step):
        part = view[start : start + step]
        stack = buffer[: len(part) * inner]
        target = stack[:, :n].unflatten(0, part.shape[:first]).unflatten(first, part.shape[first : first + 2])
        target.unflatten(first + 2, part.shape[first + 2 :]).copy_(part)
        means, size = z.new_zeros(stack.shape[:2]), z.new_zeros(len(stack))
        if options.centred:
            # One entry goes off first: exactly zero for a constant slice, and no digits lost to a large mean.
            entry = stack[:, 0, :1].clone()
            stack[:, :n] -= entry[:, :, None]
            mean = stack[:, :n].mean(1)
            size = (mean + entry).square().sum(1)
            stack[:, :n] -= mean[:, None]
            if extra:
                stack[:, n] = mean
                means = stack.mean(2)
                stack -= means[:, :, None]
        yield _Operand(slice(start * inner, start * inner + len(stack)), stack, means, size)


class _Products(torch.autograd.Function):
    """Gram matrices of both stacks and their cross product; keeps only the maps, and cuts them again going back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, options: _Options) -> tuple[Tensor, ...]:
        _, (slices, n, _) = _cut(x, options.patch, options.relation)
        n += int(options.centred and options.inter)
        gram_x, gram_y = x.new_empty(slices, n, n), x.new_empty(slices, n, n)
        cross = x.new_empty(slices if options.inter else 0, n, n)
        means_x, means_y = x.new_empty(slices, n), x.new_empty(slices, n)
        size_x, size_y = x.new_empty(slices), x.new_empty(slices)
        for one, other in zip(_operands(x, options), _operands(y, options), strict=True):
            some = one.slices
            torch.bmm(one.stack, one.stack.mT, out=gram_x[some])
            torch.bmm(other.stack, other.stack.mT, out=gram_y[some])
            if options.inter:
                torch.bmm(one.stack, other.stack.mT, out=cross[some])
            means_x[some], size_x[some] = one.means, one.size
            means_y[some], size_y[some] = other.means, other.size
        ctx.save_for_backward(x, y if options.inter else None)
        ctx.options = options
        ctx.mark_non_differentiable(gram_y, means_y, size_x, size_y)
        return gram_x, means_x, gram_y, means_y, cross, size_x, size_y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x, y = ctx.saved_tensors
        options = ctx.options
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        view, (slices, n, m) = _cut(result, options.patch, options.relation)
        inner = slices // len(view)

        def to_patches(gradient: Tensor) -> Tensor:
            """The transposed centring over patches and mean over patches, on the small side of the product."""
            if not options.centred:
                return gradient
            rows = gradient[:, :n] - gradient[:, :n].mean(1, keepdim=True)
            return rows + gradient[:, n:] / n if options.inter else rows

        # The centring of the rows needs no transpose: all rows of the operands are centred.
        own, cross = to_patches(gradients[0] + gradients[0].mT), to_patches(gradients[4])
        offsets = to_patches(gradients[1][:, :, None]) / m
        others: Iterator[_Operand | None] = _operands(y, options) if options.inter else itertools.repeat(None)
        for one, other in zip(_operands(x, options), others, strict=False):
            some = one.slices
            part = own[some] @ one.stack
            if other is not None:
                part.baddbmm_(cross[some], other.stack)
                if options.centred:
                    part += offsets[some]
            target = view[some.start // inner : some.stop // inner]
            target.copy_(part.view(target.shape))
        return result, None, None
