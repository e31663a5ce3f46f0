"""Cooperative diffusion recovery likelihood (CDRL) in one file, for readers: the checkerboard in less than a minute.

    python examples/minimal.py --out checkerboard.png

Two networks learn the distribution of points in the plane. The energy gives the log density of the data at each of
T noise levels; the initializer proposes a sample of a level, and a few Langevin steps along the energy's gradient
correct it. Equations, algorithms and appendices are numbered as in the paper: Zhu et al., "Learning Energy-Based
Models by Cooperative Diffusion Recovery Likelihood" (2024). Nothing of the package beside this file is imported.
"""

import argparse
import copy
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

T, K = 6, 12  # noise levels: energies live on t = 0 … T-1, level T is pure noise; Langevin steps a level
BATCH, WIDTH, BLOCKS, WAVES = 500, 64, 2, 32  # points an update; sizes of both networks


def checkerboard(count: int) -> Tensor:
    """Points [count, 2], uniform in the 8 dark squares of a 4 by 4 board on [-1, 1]^2."""
    row, column = torch.randint(4, (count,)), torch.randint(2, (count,))
    return (torch.stack([2 * column + row % 2, row], dim=1) + torch.rand(count, 2)) / 2 - 1


def inside(points: Tensor) -> Tensor:
    """Whether each of [N, 2] points lies in a dark square: bool [N]."""
    column, row = ((points + 1) * 2).floor().unbind(dim=1)
    return ((column - row) % 2 == 0) & (points.abs() < 1).all(dim=1)


class Schedule:
    """Tables over the levels: x_t = alpha_bar_t x_0 + sigma_bar_t epsilon, and x_{t+1} = y_t + sigma_{t+1} epsilon.

    The energy of level t sees y_t = alpha_y_t x_t. The highest level models y_{T-1} = x_{T-1} by itself, whatever x_T
    is: alpha_y is 1, and eq. 3 loses its quadratic term. For images the paper has logsnr_max = 9.8, logsnr_min = -5.1
    and another step size (eq. 16).
    """

    def __init__(self, logsnr_max: float = 6.0, logsnr_min: float = -2.0, step_coefficient: float = 0.03) -> None:
        b = math.atan(math.exp(-logsnr_max / 2))  # eq. 19
        a = math.atan(math.exp(-logsnr_min / 2)) - b  # eq. 20
        u = torch.arange(T + 1, dtype=torch.float64) / T
        self.logsnr = -2 * torch.log(torch.tan(a * u + b))  # lambda_t of Appendix A.3
        self.alpha_bar, self.sigma_bar = torch.sigmoid(self.logsnr).sqrt(), torch.sigmoid(-self.logsnr).sqrt()
        alpha = self.alpha_bar[1:] / self.alpha_bar[:-1]  # alpha_{t+1} and sigma_{t+1}, at index t
        sigma = (1 - alpha**2).sqrt()
        self.alpha_y, self.precision = alpha.clone(), sigma**-2  # the weight of eq. 3's quadratic term
        self.alpha_y[-1], self.precision[-1] = 1, 0
        # The Langevin step s_t: here s_t^2 is the same share of sigma_{t+1}^2 at every level.
        self.step_size = math.sqrt(step_coefficient) * sigma
        self.proposal_std = self.alpha_y * self.sigma_bar[:-1] / self.sigma_bar[1:] * sigma  # below eq. 6
        self.loss_weight = sigma[0] / sigma  # of the energy's loss
        for name, table in vars(self).items():
            setattr(self, name, table.float()[:, None])  # [levels, 1], so that table[t] multiplies points [N, 2]


class Network(nn.Module):
    """A residual multilayer perceptron: points [N, 2] at levels t [N] to [N, outputs].

    Random waves of the coordinates help it to learn sharp edges (Tancik et al., 2020). The energy sees as much of
    them as the level's noise leaves.
    """

    def __init__(self, logsnr: Tensor, outputs: int, damped: bool) -> None:
        super().__init__()
        self.frequencies = 2 * math.pi * torch.randn(2, WAVES)
        variance = torch.sigmoid(-logsnr) if damped else torch.zeros_like(logsnr)
        self.amplitudes = torch.exp(-variance * self.frequencies.square().sum(dim=0) / 2)
        # The level enters as lambda_t, squashed and turned into sinusoids as positions are in a transformer (A.3).
        position = 1000 * torch.arctan(torch.exp(-logsnr / 2)) / (math.pi / 2)
        angles = position * torch.exp(-math.log(10_000) / (WIDTH // 2 - 1) * torch.arange(WIDTH // 2))
        self.sinusoids = torch.cat([angles.sin(), angles.cos()], dim=1)
        self.embed = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU())
        self.first = nn.Linear(2 + 2 * WAVES, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2 * BLOCKS))
        self.conditions = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS))
        self.last = nn.Linear(WIDTH, outputs)

    def forward(self, points: Tensor, t: Tensor) -> Tensor:
        angles, amplitude = points @ self.frequencies, self.amplitudes[t]
        h = self.first(torch.cat([points, amplitude * angles.sin(), amplitude * angles.cos()], dim=1))
        level = self.embed(self.sinusoids)  # of every level once, not of every point
        for i, condition in enumerate(self.conditions):
            inner = self.blocks[2 * i](F.leaky_relu(h, 0.2)) + condition(level)[t]
            h = h + self.blocks[2 * i + 1](F.leaky_relu(inner, 0.2))
        return self.last(F.leaky_relu(h, 0.2))


class Energy(Network):
    """f, the log density of eq. 1 up to a constant a level, [N]; for images it is the output over s_t^2 (A.2)."""

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        return super().forward(y, t)[:, 0]


class Initializer(Network):
    """g of eq. 6, the mean of a proposal of y_t from x_{t+1}, learned as a correction of its input: [N, 2]."""

    def forward(self, x_next: Tensor, t: Tensor) -> Tensor:
        return x_next + super().forward(x_next, t + 1)


def gradient(energy: Energy, y: Tensor, t: Tensor) -> Tensor:
    """Gradient of f with respect to the points y, [N, 2]; the parameters get none."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        return torch.autograd.grad(energy(y, t).sum(), y)[0]


def langevin(energy: Energy, schedule: Schedule, y: Tensor, x_next: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """One Langevin step towards p(y_t | x_{t+1}), eq. 5."""
    slope = gradient(energy, y, t) - schedule.precision[t] * (y - x_next)
    return y + schedule.step_size[t] ** 2 / 2 * slope + schedule.step_size[t] * noise


def refine(energy: Energy, schedule: Schedule, y: Tensor, x_next: Tensor, t: Tensor) -> Tensor:
    """K Langevin steps from the proposal y."""
    for _ in range(K):
        y = langevin(energy, schedule, y, x_next, t, torch.randn_like(y))
    return y


def losses(energy: Energy, initializer: Initializer, schedule: Schedule, x0: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of energy and initializer on a batch of data: the body of Algorithm 1."""
    t = torch.randint(T, (len(x0),))
    epsilon = torch.randn_like(x0)  # shared by both noise levels: section 3.4, eq. 9
    y = schedule.alpha_y[t] * (schedule.alpha_bar[t] * x0 + schedule.sigma_bar[t] * epsilon)
    x_next = schedule.alpha_bar[t + 1] * x0 + schedule.sigma_bar[t + 1] * epsilon
    proposed = initializer(x_next, t) + schedule.proposal_std[t] * torch.randn_like(x0)  # eq. 6
    refined = refine(energy, schedule, proposed.detach(), x_next, t)
    # Eq. 7: likelier where the data are, less likely where the chains went.
    energy_loss = (schedule.loss_weight[t, 0] * (energy(refined, t) - energy(y, t))).mean()
    # Eq. 8 without its weight: the initializer learns to propose what the chains made of its proposals.
    return energy_loss, (refined - proposed).square().sum(dim=1).mean()


@torch.no_grad()
def sample(energy: Energy, initializer: Initializer, schedule: Schedule, count: int) -> Tensor:
    """Algorithm 2: ``count`` points from noise, [count, 2]."""
    x = torch.randn(count, 2)
    for level in reversed(range(T)):
        t = torch.full((count,), level)
        y = initializer(x, t) + schedule.proposal_std[t] * torch.randn_like(x)  # eq. 6
        x = refine(energy, schedule, y, x, t) / schedule.alpha_y[t]
    # Level 0 still has a little noise: one step without any goes to the mean of the data given x (eq. 18).
    score = schedule.alpha_y[t] * gradient(energy, schedule.alpha_y[t] * x, t)
    return (x + schedule.sigma_bar[t] ** 2 * score) / schedule.alpha_bar[t]


def train(steps: int) -> tuple[Energy, Initializer, Schedule]:
    """Algorithm 1: ``steps`` updates of both networks; returns them with their weights averaged over time."""
    schedule = Schedule()
    networks = Energy(schedule.logsnr, 1, damped=True), Initializer(schedule.logsnr, 2, damped=False)
    averages = copy.deepcopy(networks)
    optimizers = [torch.optim.Adam(network.parameters(), lr=2e-3) for network in networks]
    for step in range(steps):
        pair = losses(*networks, schedule, checkerboard(BATCH))
        for network, average, optimizer, loss in zip(networks, averages, optimizers, pair, strict=True):
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 100) * (1 - 0.98 * step / steps)
            optimizer.step()
            for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
                mean.data.lerp_(weight.data, max(0.005, 9 / (10 + step)))  # a short memory at first
        if (step + 1) % max(1, steps // 10) == 0:
            values = f"energy loss {pair[0].item():+.4f}, initializer loss {pair[1].item():.4f}"
            print(f"step {step + 1:>4}/{steps}: {values}", flush=True)
    return *averages, schedule


def main() -> None:
    """Train, sample, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=400, help="updates of both networks (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default: %(default)s)")
    parser.add_argument("--out", default="checkerboard.png", help="the picture (default: %(default)s)")
    options = parser.parse_args()
    if options.steps < 0 or not options.out.endswith(".png") or not Path(options.out).absolute().parent.is_dir():
        parser.error("expected --steps of at least 0 and --out that names a .png file in a folder that exists")
    torch.set_num_threads(1)  # matrices as small as these gain nothing from more
    torch.manual_seed(options.seed)
    points = sample(*train(options.steps), 5000)
    print(f"{inside(points).float().mean():.3f} of {len(points)} samples are inside the squares")
    figure = Figure(figsize=(8, 4), layout="constrained")
    for axis, title, cloud in zip(figure.subplots(1, 2), ("data", "samples"), (checkerboard(5000), points)):
        axis.scatter(*cloud.T, s=1)
        axis.set(title=title, xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
    figure.savefig(options.out, dpi=100)
    print(f"the picture is in {options.out}")


if __name__ == "__main__":
    main()
