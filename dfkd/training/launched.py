"""Ranks that torchrun or SLURM started, on one machine or several: each is the whole program.

The first rank does the run. The others make no product of the store: they wait for what the first comes to that ranks
share, trainings and banks of dreams, each handed to them whole, and are a rank of it. So nothing else in a run has to
know of them, and a machine that fails ends all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from dfkd.training.processes import LONGEST_WAIT

Work = Callable[[], None]


@cache
def launcher() -> ClusterEnvironment | None:
    """The environment of the launcher that started several ranks; None: this process was started alone."""
    found: ClusterEnvironment | None = None
    if TorchElasticEnvironment.detect():
        found = TorchElasticEnvironment()
    elif "SLURM_STEP_ID" in os.environ and SLURMEnvironment.detect():  # a batch script without srun is one process
        found = SLURMEnvironment()
    return found if found is not None and found.world_size() > 1 else None


class LaunchedRanks(DDPStrategy):
    """DDP over the ranks that were launched, which are connected already."""

    def __init__(self) -> None:
        super().__init__(cluster_environment=launcher(), static_graph=True)  # as `JointRanks`


@contextmanager
def first_of_the_launched() -> Iterator[bool]:
    """Within the context, launched ranks are connected; whether this is the first, or was started alone.

    The others come to the context's body when the first has left it.
    """
    environment = launcher()
    if environment is None:
        yield True
        return
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        init_method=f"tcp://{environment.main_address}:{environment.main_port}",
        rank=environment.global_rank(), world_size=environment.world_size(), timeout=LONGEST_WAIT,
    )  # fmt: skip
    if environment.global_rank() > 0:
        while (work := _received()) is not None:
            work()
        yield False
    else:
        yield True
        dist.broadcast_object_list([None])  # not after an error: the others may be anywhere, and end with this process
    dist.destroy_process_group()


def on_all_ranks(work: Work) -> None:
    """Do `work` here and on the ranks that wait for it."""
    dist.broadcast_object_list([work])
    work()


def wait_for_all_ranks() -> None:
    """Come back when every rank has come here (`RuntimeError` where one has ended)."""
    dist.barrier()


def _received() -> Work | None:
    received: list[Work | None] = [None]
    try:
        dist.broadcast_object_list(received)
    except RuntimeError as error:
        sys.exit(f"dfkd: error: the first rank has ended, and this one with it ({error}).")
    return received[0]
