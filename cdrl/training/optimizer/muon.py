"""Muon: momentum whose matrices are orthogonalized (Jordan et al. 2024), and Adam for all other parameters.

Where the number of updates is what is short, it learns several times as much an update as Adam. PyTorch's Muon takes
matrices only and leaves convolutions out; DeepSpeed's is compiled for minutes on a processor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# The quintic a x + b x^3 + c x^5 that drives every singular value to about 1 in five rounds (Jordan et al. 2024).
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 5
_SMALLEST_SIDE = 16


def orthogonalized(matrices: Tensor, *, bfloat16: bool = False) -> Tensor:
    """U V^T, roughly, of each matrix U S V^T in a batch [B, m, n]: its singular values become 0.7 to 1.2.

    Newton-Schulz iteration, in whichever of two orders takes fewer multiplications.

    Args:
        bfloat16: multiply in bfloat16, as Jordan et al. do: several times as fast where it is built in.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if tall else matrices
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    rows, columns = wide.shape[-2:]
    if bfloat16:
        wide = wide.bfloat16()
    # Gathered factors need more digits than bfloat16 has: a matrix of low rank would grow a hundredfold.
    result = _iterated(wide) if bfloat16 or 2 * columns < 3 * rows else _gathered(wide) @ wide
    return (result.mT if tall else result).to(matrices.dtype)


def _iterated(wide: Tensor) -> Tensor:
    """The polynomial applied to the matrices themselves, round by round: 5 (2 n + m) m^2 multiplications."""
    for _ in range(_ROUNDS):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), wide, beta=_A)
    return wide


def _gathered(wide: Tensor) -> Tensor:
    """The factor [B, m, m] that all rounds together come to, from the Gram matrix: 17 m^3 and 2 n m^2 for its use."""
    gram = wide @ wide.mT
    factor: Tensor | None = None
    for index in range(_ROUNDS):
        polynomial = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(_A)
        factor = polynomial if factor is None else factor @ polynomial
        if index < _ROUNDS - 1:
            gram = polynomial @ gram @ polynomial
    assert factor is not None
    return factor


class Muon(torch.optim.Adam):
    """Muon for convolutions and dense layers of at least 16 x 16, Adam for what is left.

    A convolution counts as the matrix [outputs, inputs x 9]. Updates of matrices are scaled to the root mean square
    of Adam's (Liu et al. 2025), so that one learning rate serves both.

    Args:
        bfloat16: orthogonalize in bfloat16, see `orthogonalized`.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], *, bfloat16: bool = False
    ) -> None:
        self._bfloat16 = bfloat16
        everything = list(parameters)
        matrices = [p for p in everything if p.ndim > 1 and min(len(p), p[0].numel()) >= _SMALLEST_SIDE]
        chosen = {id(p) for p in matrices}
        rest = [p for p in everything if id(p) not in chosen]
        groups: list[dict[str, Any]] = [{"params": matrices, "momentum": 0.95}, {"params": rest}]
        super().__init__([group for group in groups if group["params"]], lr=lr, betas=betas, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update; the gradients of the matrices are let go of."""
        for group in self.param_groups:
            if "momentum" in group:
                self._update_matrices(group)
        super().step(closure)

    def _update_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault((len(parameter), parameter[0].numel()), []).append(parameter)
        for (rows, columns), parameters in by_shape.items():
            directions = torch.stack([d.reshape(rows, -1) for d in self._directions(parameters, group["momentum"])])
            orthogonal = orthogonalized(directions, bfloat16=self._bfloat16)
            scale = 0.2 * max(rows, columns) ** 0.5
            updates = [u.view_as(p) for u, p in zip(orthogonal.unbind(), parameters, strict=True)]
            torch._foreach_sub_(list[Tensor](parameters), updates, alpha=scale * float(group["lr"]))
            for parameter in parameters:
                parameter.grad = None  # Adam, which goes next, passes over parameters without one

    def _directions(self, parameters: list[nn.Parameter], momentum: float) -> tuple[Tensor, ...]:
        """Nesterov's look-ahead gradient of each."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        buffers = [self._momentum_of(parameter) for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        return torch._foreach_lerp(gradients, buffers, momentum)

    def _momentum_of(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())  # which Adam expects to find in every state that it loads
            state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        return state["momentum_buffer"]
