"""A flow whose solution is known."""

import torch


class Linear(torch.nn.Module):
    """dx/dt = a x + b t, whose solution from x at t = 0 is known (see `solution`)."""

    a, b = -1.3, 0.7

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.a * x + self.b * t.view(-1, *[1] * (x.ndim - 1))

    def solution(self, x: torch.Tensor) -> torch.Tensor:
        """The exact state at t = 1: (x + b/a^2) e^a - b/a - b/a^2."""
        a, b = self.a, self.b
        return (x + b / a**2) * torch.tensor(a).double().exp() - b / a - b / a**2
