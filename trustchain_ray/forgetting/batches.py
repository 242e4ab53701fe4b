"""Keyed mini-batches of plain fine-tuning, where no removal is to be replayed later."""

from trustchain_ray.keys import generator


def keyed_batches(key: bytes | str, purpose: str, records: int, size: int, steps: int) -> list[list[int]]:
    """`steps` batches of ``min(size, records)`` different indices that go round and round through keyed orders."""
    size = min(size, records)
    queue: list[int] = []
    batches = []
    epoch = 0
    for _ in range(steps):
        batch: list[int] = []
        while len(batch) < size:
            if not queue:
                queue = [int(i) for i in generator(key, purpose, epoch).permutation(records)]
                epoch += 1
            # A record that ends one order and begins the next is not taken twice into one batch.
            batch.append(next(i for i in queue if i not in batch))
            queue.remove(batch[-1])
        batches.append(batch)
    return batches
