"""What the metrics of an epoch are made of, added up step by step."""

import torch
from torch import Tensor

from ranet.distributed import gather, world_size
from ranet.protocols import Metrics


class EpochMeter:
    """Sums over one worker's part of an epoch; those of all workers add up to the whole."""

    def __init__(self, device: torch.device) -> None:
        # Loss, hits of the first and of the last exit: on the device, where .item() would stall it.
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)
        self._num_images = 0
        # Shares of the seconds that the workers spend side by side.
        self._seconds, self._waited = 0.0, 0.0

    def add_images(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count images, given their mean loss and their logits (exits, images, classes)."""
        choices = torch.stack((logits.detach()[0], logits.detach()[-1])).argmax(dim=-1)
        hits = (choices == labels).sum(dim=1)
        self._sums += torch.cat((loss.detach()[None].double() * len(labels), hits))
        self._num_images += len(labels)

    def add_time(self, seconds: float, waited: float) -> None:
        """Count the seconds of a step, and those of them that it waited for its images."""
        self._seconds += seconds / world_size()
        self._waited += waited / world_size()

    def means(self) -> tuple[float, float, float]:
        """Loss, and share of right answers of the first and of the last exit, on this worker."""
        loss, first, last = (self._sums / self._num_images).tolist()
        return loss, first, last

    @property
    def images_per_second(self) -> float:
        """Images of all workers in a second, as far as this worker can tell."""
        return self._num_images / self._seconds

    def metrics(self) -> Metrics:
        """Give the metrics of the epoch, the same on every worker."""
        total = _of(self.state().sum(dim=0))
        loss, _, _ = total.means()
        return {
            "train/loss": loss,
            "train/images_per_second": total.images_per_second,
            "train/data_wait": total._waited / total._seconds,
        }

    def state(self) -> Tensor:
        """Give the sums of every worker, a row each, on the CPU."""
        others = self._sums.new_tensor([self._num_images, self._seconds, self._waited])
        return torch.stack(gather(torch.cat((self._sums, others)))).cpu()

    @classmethod
    def from_state(cls, state: Tensor, rank: int, device: torch.device) -> "EpochMeter":
        """Go on from what `state` gave; with another number of workers, the first takes it all."""
        if len(state) == world_size():
            return _of(state[rank], device)
        return _of(state.sum(dim=0), device) if rank == 0 else cls(device)


def _of(row: Tensor, device: torch.device | None = None) -> EpochMeter:
    """Make a tally of one row of a state."""
    tally = EpochMeter(device or row.device)
    tally._sums.copy_(row[:3])
    num_images, tally._seconds, tally._waited = row[3:].tolist()
    tally._num_images = int(num_images)
    return tally
