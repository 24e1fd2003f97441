"""Cut feature maps into patches, and form the small matrix products that a patchwise CKA needs.

A map (B, C, H, W) becomes a stack X (L, n, m): L slices, each with n patches of m entries.

relation    L slices          n       m entries of a patch
"patch"     channels C        patches B p p        the paper's default
"sample"    samples B         patches C p p        channels may differ between the networks
"pixel"     places p p        patches B C          channels may differ between the networks

Intra aligns the n x n Gram matrices over patches. Inter aligns the m x m Gram matrices over entries, which are never
formed: <X'X, Y'Y> = ||X Y'||^2 (docs/paper.md, section 3).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["RELATIONS", "PatchProducts", "patch_products", "patch_size", "patch_stack", "resized", "stack_shape"]

# A map cut into u x v patches of h x w pixels has the axes b, c, u, h, v, w. Their order as (slices, patches, entries):
AXES = {"patch": (1, 2, 4, 0, 3, 5), "sample": (0, 2, 4, 1, 3, 5), "pixel": (3, 5, 2, 4, 0, 1)}
RELATIONS = tuple(AXES)

# Chunk size in entries of a stack: large on a GPU to fill it, small on a CPU to fit the cache.
CHUNK = (2**26, 2**20)


def patch_size(height: int, width: int, patch: int, minimum: int) -> int:
    """Side of the patches of a map: ``patch``, halved until there are at least ``minimum`` patches, or 1.

    Parameters
    ----------
    height, width : int
        Size of the map.
    patch : int
        Largest side.
    minimum : int
        Smallest number of patches.

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
    """Resize a map bilinearly; return it unchanged if it has the size."""
    if tuple(x.shape[2:]) == (height, width):
        return x
    return functional.interpolate(x, (height, width), mode="bilinear", align_corners=False)


def _cut(x: Tensor, patch: int, relation: str) -> tuple[Tensor, tuple[int, int, int]]:
    """View of a map with its axes in the order of ``relation``, and (L, n, m)."""
    u, v = x.shape[2] // patch, x.shape[3] // patch
    view = x.unflatten(2, (u, patch)).unflatten(4, (v, patch)).permute(AXES[relation])
    slices = view.shape[0] if relation != "pixel" else patch * patch
    return view, (slices, u * v, x.numel() // (slices * u * v))


def stack_shape(x: Tensor, patch: int, relation: str) -> tuple[int, int, int]:
    """(L, n, m) of the stack of a map whose sides are multiples of ``patch``."""
    return _cut(x, patch, relation)[1]


def patch_stack(x: Tensor, patch: int, relation: str) -> Tensor:
    """The stack X (L, n, m) of a map whose sides are multiples of ``patch``, as one copy.

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
    """Products (L, n, n) of the stacks X of the student and Y of the teacher, and their rounding errors."""

    gram_x: Tensor
    """Gram matrix over patches, centred if asked for."""
    gram_y: Tensor
    inner_x: Tensor
    """X X' with centred rows, for inter; empty without inter."""
    inner_y: Tensor
    cross: Tensor
    """X Y' with centred rows."""
    floors: tuple[Tensor, Tensor]
    """A slice is constant if the trace of ``gram_x`` (``gram_y``) is at most this, (L,)."""
    inner_floors: tuple[Tensor, Tensor]
    """The same bounds for ``inner_x`` and ``inner_y``."""


def patch_products(x: Tensor, y: Tensor, patch: int, relation: str, *, centred: bool, inter: bool) -> PatchProducts:
    """Products of all slices, batched, without a copy of the maps.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Student's map; H and W are multiples of ``patch``.
    y : Tensor (B, C', H, W)
        Teacher's map with the dtype of ``x``. It gets no gradient. C' = C for relation "patch".
    patch : int
        Side of the patches.
    relation : "patch", "sample" or "pixel"
        See the table of this module.
    centred : bool
        Centre over patches for ``gram`` and over entries for ``inner``.
    inter : bool
        Form ``inner`` and ``cross`` too.

    Returns
    -------
    PatchProducts
        Gradients flow to ``x``.

    Notes
    -----
    Write X = W + s 1' + 1 mu', where W is centred over patches and entries, s holds the centred patch means and mu is
    the mean patch. Then one product gives both centrings, and no subtraction loses digits: over patches W W' + m s s',
    over entries T (W; mu')(V; nu')' T' with T = (I, 1), where V and nu belong to Y and mu and nu have mean 0.
    """
    options = _Options(patch, relation, centred, inter)
    products = _plain(x, y, options) if torch.compiler.is_compiling() else _Products.apply(x, y, options)
    gram_x, means_x, gram_y, means_y, cross, size_x, size_y = products
    _, (_, n, m) = _cut(x, patch, relation)
    # Rounding error of a constant slice, relative to its mean patch, or to its patch means.
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
    """T P T' with T = (I, 1): add the last row and column, of the mean patch, to those of all patches."""
    return product[:, :n, :n] + product[:, :n, n:] + product[:, n:, :n] + product[:, n:, n:]


class _Options(NamedTuple):
    patch: int
    relation: str
    centred: bool
    inter: bool


class _Operand(NamedTuple):
    """Some slices, prepared for products."""

    slices: slice
    stack: Tensor
    """(l, n, m), or (l, n + 1, m) with the mean patch as the last row if both centrings are wanted."""
    means: Tensor
    """Means of the rows, (l, n) or (l, n + 1), already subtracted if both centrings are wanted; else zeros."""
    size: Tensor
    """Squared norms of the mean patches, (l,); zeros without centring."""


def _operands(z: Tensor, options: _Options) -> Iterator[_Operand]:
    """Yield the operands of some slices at a time. Use each before the next one, which overwrites it.

    One buffer serves all slices and stays in the cache. A copy of the whole map would cost more time than the products,
    and as much memory as the map.
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
            # One entry is subtracted first: a constant slice becomes exactly zero, and a large mean costs no digits.
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
    """Gram matrices of both stacks and their cross product. Backward cuts the maps again, to save memory."""

    @staticmethod
    def forward(x: Tensor, y: Tensor, options: _Options) -> tuple[Tensor, ...]:
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
        return gram_x, means_x, gram_y, means_y, cross, size_x, size_y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, y, options = inputs
        ctx.save_for_backward(x, y if options.inter else None)
        ctx.options = options
        _, _, gram_y, means_y, _, size_x, size_y = output
        ctx.mark_non_differentiable(gram_y, means_y, size_x, size_y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x, y = ctx.saved_tensors
        options = ctx.options
        if torch.is_grad_enabled():  # second derivatives are wanted
            other = x.detach() if y is None else y
            differentiable = (0, 1, 4)
            pull_back = torch.func.vjp(lambda z: itemgetter(*differentiable)(_plain(z, other, options)), x)[1]
            return (*pull_back(itemgetter(*differentiable)(gradients)), None, None)
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        view, (slices, n, m) = _cut(result, options.patch, options.relation)
        inner = slices // len(view)

        def to_patches(gradient: Tensor) -> Tensor:
            """Transposed centring and mean over patches, applied to the small factor of the product."""
            if not options.centred:
                return gradient
            rows = gradient[:, :n] - gradient[:, :n].mean(1, keepdim=True)
            return rows + gradient[:, n:] / n if options.inter else rows

        # The rows of the operands are centred already, so the centring of the rows needs no transpose.
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

    @staticmethod
    def vmap(
        _info: Any, in_dims: tuple[int | None, ...], x: Tensor, y: Tensor, options: _Options
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        products = torch.vmap(lambda one, other: _plain(one, other, options), in_dims[:2])(x, y)
        return products, (0,) * len(products)


def _plain(x: Tensor, y: Tensor, options: _Options) -> tuple[Tensor, ...]:
    """What `_Products` returns, with copies of the stacks, in operations that compilers fuse."""
    both = options.centred and options.inter

    def operand(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stack = patch_stack(z, options.patch, options.relation)
        if not options.centred:
            return stack, stack.new_zeros(stack.shape[:2]), stack.new_zeros(len(stack))
        entry = stack[:, 0, :1].detach()
        stack = stack - entry[:, :, None]
        mean = stack.mean(1)
        size = (mean + entry).detach().square().sum(1)
        stack = stack - mean[:, None]
        if not both:
            return stack, stack.new_zeros(stack.shape[:2]), size
        stack = torch.cat([stack, mean[:, None]], dim=1)
        means = stack.mean(2)
        return stack - means[:, :, None], means, size

    (one, means_x, size_x), (other, means_y, size_y) = operand(x), operand(y.detach())
    cross = one @ other.mT if options.inter else one.new_zeros(0, one.shape[1], one.shape[1])
    return one @ one.mT, means_x, other @ other.mT, means_y, cross, size_x, size_y
