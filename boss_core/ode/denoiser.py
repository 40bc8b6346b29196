"""Denoisers as velocities: diffusion models in the convention of EDM (Karras et al. 2022).

A denoiser D(y; sigma) sees data with noise added, y = x_1 + sigma x_0, and returns the expected
data. A state of the flow is the same thing scaled, x_t = t x_1 + (1 - t) x_0 = t y at

    sigma = (1 - t) / t,

so E[x_1 | x_t] = D(x_t / t; sigma), and with x_0 = (x_t - t x_1) / (1 - t) the velocity is

    v(x, t) = E[x_1 - x_0 | x_t = x] = (D(x / t; sigma) - x) / (1 - t).

An Euler step of this flow is exactly an Euler step of EDM's own equation (dy / dsigma =
(y - D) / sigma, their Algorithm 1 without the correction): in both, the noise shrinks by the
ratio of the two sigmas and what D returned makes up the rest. A schedule found here therefore
holds for EDM's sampler, and the other way round.
"""

from collections.abc import Callable

from torch import Tensor

from boss_core.errors import InputError
from boss_core.ode.velocity import VelocityField

Denoiser = Callable[[Tensor, Tensor], Tensor]


def velocity_from_denoiser(
    denoiser: Denoiser, *, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> VelocityField:
    """The velocity ``v(x, t)`` of a denoiser ``D(y, sigma)``, as EDM's networks are.

    denoiser: ``D(y, sigma)``, y (B, ...), sigma (B,); returns (B, ...), the expected data. Bind
        labels beforehand (``functools.partial``).
    sigma_min, sigma_max: the noise levels that it was trained on; it never sees others. With
        noise n = max(1 - t, sigma_min / (1 + sigma_min)) and s = min(n / (1 - n), sigma_max),

            v(x, t) = (D(x s / n; s) - x) / n,

        which is the formula above wherever sigma is in the range. Nearer to t = 0 the input is
        scaled so that its noise has level s, as in EDM, whose sampling starts from y =
        sigma_max x_0 with no data in it: that is exactly what D sees at t = 0. Nearer to t = 1
        the noise stays sigma_min, and v(x, 1), which is 0 / 0 otherwise, becomes what it tends
        to.

    Times beside t = 1 leave little room in few bits: keep states in float32 or wider, and let the
    denoiser itself compute in less. Raises InputError unless 0 < sigma_min < sigma_max.
    """
    if not 0 < sigma_min < sigma_max:
        raise InputError(
            f"sigma_min, sigma_max: {sigma_min}, {sigma_max}; 0 < sigma_min < sigma_max needed"
        )

    def velocity(x: Tensor, t: Tensor, /) -> Tensor:
        noise = (1 - t).clamp_min(sigma_min / (1 + sigma_min))
        sigma = (noise / (1 - noise)).clamp_max(sigma_max)
        each = (-1, *[1] * (x.ndim - 1))
        data = denoiser(x * (sigma / noise).view(each), sigma)
        # EDM's own denoisers return float32 whatever they get.
        return (data.to(x.dtype) - x) / noise.view(each)

    return velocity
