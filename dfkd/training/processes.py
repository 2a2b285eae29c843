"""Training in several processes: how Lightning starts them, and how one of them tells the caller what happens."""

from __future__ import annotations

import io
import logging
import multiprocessing
import pickle
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from dfkd import errors
from dfkd.errors import ConfigError, DfkdError, TrainingError

START = "forkserver"  # forks of a process that has imported everything already: a run starts them for every training
LONGEST_WAIT = timedelta(days=7)  # of a rank for another: one makes the dreams that all then learn from


class IndependentRanks(DDPStrategy):
    """DDP for work without a gradient to share: each rank has batches of its own, of any number."""

    def configure_ddp(self) -> None:
        """Leave the module unwrapped."""


class JointRanks(DDPStrategy):
    """DDP whose ranks Lightning starts, on this machine, for one training."""

    def __init__(self) -> None:
        multiprocessing.set_forkserver_preload(["dfkd.app"])
        # A static graph may have parameters without a gradient, which a user's network may have.
        super().__init__(start_method=START, timeout=LONGEST_WAIT, static_graph=True)  # type: ignore[arg-type]

    def setup_environment(self) -> None:
        """As DDP's, in a process that is this rank's from beginning to end, and as quiet as the caller's."""
        self._quiet = ExitStack()
        self._quiet.enter_context(quiet_lightning())
        super().setup_environment()


def require_portable(network: nn.Module) -> None:
    """Raise `ConfigError` where a network cannot be handed to another process."""
    try:
        pickle.dumps(network)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"trainer.devices and trainer.num_nodes must be 1 for {type(network).__name__}, which cannot be handed to "
            f"other processes ({error}). Define its classes and functions at the top level of a module."
        ) from error


class Messenger(Callback):
    """Sends the rows of a training as they arise, and at its end what it leaves, from the first rank.

    Args:
        queue: to the process that started the ranks.
    """

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def on_fit_start(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.is_global_zero:
            module.on_row = self.queue.put

    def on_fit_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.is_global_zero:
            left = io.BytesIO()  # bytes, because a tensor's memory goes with the process that sends it
            torch.save({"history": module.history, "data": trainer.datamodule.state_dict()}, left)  # type: ignore[attr-defined]
            self.queue.put(left.getvalue())


@contextmanager
def other_processes(module: Any, data: lightning.LightningDataModule) -> Iterator[Messenger]:
    """Within the context, `module` may be fitted in processes with the callback that is given.

    Its rows are told to its `on_row` as they arise; after the context it has its history, and `data` its state.

    Raises:
        TrainingError: a process died or failed; or what it raised, where that is a `DfkdError`.
    """
    queue = multiprocessing.get_context(START).SimpleQueue()
    left: list[bytes] = []

    def listen() -> None:
        while (message := queue.get()) is not None:
            if isinstance(message, bytes):
                left.append(message)
            else:
                module.on_row(message)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield Messenger(queue)
    except ProcessExitedException as error:
        raise TrainingError(
            f"A process of this training died ({error}). Run the same again to continue from the last checkpoint, with "
            "a lower trainer.devices if memory ran out."
        ) from error
    except ProcessRaisedException as error:
        raise _raised(str(error).strip()) from error
    else:
        queue.put(None)
        listener.join()
        state = torch.load(io.BytesIO(left[-1]), weights_only=True)
        module.history = state["history"]
        data.load_state_dict(state["data"])
    finally:
        queue.put(None)


def _raised(trace: str) -> DfkdError:
    """The error that ended a process, from the trace that is all that came of it."""
    _, known, last = trace.rpartition(f"\n{errors.__name__}.")
    name, _, message = last.partition(": ")
    if known and hasattr(errors, name):
        error: DfkdError = getattr(errors, name)(message)
        return error
    return TrainingError(f"A process of this training failed: {trace}")


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's advice, which does not apply to in-memory data and our own progress display."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated.*")
        warnings.filterwarnings("ignore", message=".*module.* in eval mode at the start of training.*")
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # the data module is
        warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
