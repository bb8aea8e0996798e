"""Running sums behind the metrics of an epoch."""

import torch
from torch import Tensor

from ranet.distributed import gather, world_size
from ranet.protocols import Metrics


class EpochMeter:
    """Sums of loss, hits, images and seconds of one worker's epoch."""

    def __init__(self, device: torch.device) -> None:
        # Loss, hits of the first and the last exit; on the device, which .item() would stall.
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)
        self._num_images = 0
        # Divided by the number of workers, which run in parallel: the sum is elapsed time.
        self._seconds, self._waited = 0.0, 0.0

    def add_images(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add images with their mean loss and their logits (exits, images, classes)."""
        choices = torch.stack((logits.detach()[0], logits.detach()[-1])).argmax(dim=-1)
        hits = (choices == labels).sum(dim=1)
        self._sums += torch.cat((loss.detach()[None].double() * len(labels), hits))
        self._num_images += len(labels)

    def add_time(self, seconds: float, waited: float) -> None:
        """Add the seconds of a step, and those of waiting among them."""
        self._seconds += seconds / world_size()
        self._waited += waited / world_size()

    def means(self) -> tuple[float, float, float]:
        """Return loss and top-1 (0 to 1) of first and last exit."""
        loss, first, last = (self._sums / self._num_images).tolist()
        return loss, first, last

    @property
    def images_per_second(self) -> float:
        """Throughput of all workers in images per second, estimated from this worker."""
        return self._num_images / self._seconds

    def metrics(self) -> Metrics:
        """Compute the metrics of the epoch, equal on every worker."""
        total = _of(self.state().sum(dim=0))
        loss, _, _ = total.means()
        return {
            "train/loss": loss,
            "train/images_per_second": total.images_per_second,
            "train/data_wait": total._waited / total._seconds,
        }

    def state(self) -> Tensor:
        """Return the sums of all workers, one row each, on the CPU."""
        others = self._sums.new_tensor([self._num_images, self._seconds, self._waited])
        return torch.stack(gather(torch.cat((self._sums, others)))).cpu()

    @classmethod
    def from_state(cls, state: Tensor, rank: int, device: torch.device) -> "EpochMeter":
        """Restore a meter, with all sums on rank 0 if workers changed."""
        if len(state) == world_size():
            return _of(state[rank], device)
        return _of(state.sum(dim=0), device) if rank == 0 else cls(device)


def _of(row: Tensor, device: torch.device | None = None) -> EpochMeter:
    """Make a meter from one row of a state."""
    meter = EpochMeter(device or row.device)
    meter._sums.copy_(row[:3])
    num_images, meter._seconds, meter._waited = row[3:].tolist()
    meter._num_images = int(num_images)
    return meter
