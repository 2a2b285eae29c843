"""Finding a network's weights in a checkpoint: whatever it is nested in, whatever wrappers put before its keys."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.errors import WeightsError, listing

log = logging.getLogger(__name__)

# Parts of checkpoints whose tensors are not those of the network, or are older than its averaged ones.
OTHER_PARTS = re.compile(r"optim|sched|scaler|^amp$|callback|loops|averaging_state|current_model_state|hyper_param|rng")
AVERAGED = re.compile(r"(^|[._])(ema|swa|average|averaged|avg|shadow|polyak)([._]|$)")
WITHIN = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
COUNTERS = re.compile(r"(^|\.)(total_ops|total_params|n_averaged)$")  # of profilers and averages: no weights


@dataclass(frozen=True)
class _Found:
    """Weights under one name in a checkpoint and one prefix, by the network's own keys."""

    label: str
    prefix: str
    state: dict[str, Tensor]
    matches: int
    left_out: int

    @property
    def averaged(self) -> bool:
        return bool(AVERAGED.search(self.label.lower()) or AVERAGED.search(self.prefix.lower()))

    def __str__(self) -> str:
        return ".".join(part for part in (self.label, self.prefix.rstrip(".")) if part) or "the bare keys"


def find_state(content: Any, model: nn.Module, source: str) -> dict[str, Tensor]:
    """The weights of `model` in `content`, by its own keys, with those that are in none of its keys' places left in.

    Of all parts and prefixes, that which has the most of the model's keys; of several, the averaged one (EMA, SWA), and
    the log says so. Averages of parameters alone get the statistics of the weights beside them.

    Args:
        content: of a file, from `dfkd.models.weight_files.read_weights`.
        model: whose weights are looked for.
        source: what to call the file in messages.

    Raises:
        WeightsError: there is no state dict, or there are several that could be meant.
    """
    parts = dict(_parts(content))
    if not parts:
        raise WeightsError(
            f"{source} holds no state dict. It should be a mapping of names to tensors, bare or within a checkpoint "
            "under a key such as state_dict or model."
        )
    expected = {key for key in model.state_dict() if not key.endswith("num_batches_tracked")}
    found = [each for label, part in parts.items() for each in _prefixed(label, part, expected)]
    found.sort(key=lambda each: (-each.matches, len(each.prefix), -len(each.state)))
    best = [each for each in found if each.matches == found[0].matches]
    if not best[0].matches < len(expected):
        best = _meant(best, source)
    chosen, state = best[0], best[0].state
    parameters = {name for name, _ in model.named_parameters()}
    for each in found:
        if each.averaged and not chosen.averaged and parameters <= each.state.keys():
            log.info("%s: took the averaged parameters in %s, and all else of %s.", source, each, chosen)
            state = state | {name: value for name, value in each.state.items() if name in expected}
    if chosen.left_out and chosen.matches:
        log.info("%s: took %s, and left out %d keys beside it.", source, chosen, chosen.left_out)
    return state


def _parts(content: Any, label: str = "", depth: int = 4) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping of names to tensors in a checkpoint, by its place in it."""
    if not isinstance(content, Mapping) or depth == 0:
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    tensors = {WITHIN.sub("", key): value for key, value in tensors.items() if not COUNTERS.search(key)}
    if tensors:
        yield label, tensors
    for key, value in content.items():
        if isinstance(key, str) and not OTHER_PARTS.search(key.lower()):
            yield from _parts(value, f"{label}.{key}" if label else key, depth - 1)


def _prefixed(label: str, part: dict[str, Tensor], expected: set[str]) -> Iterator[_Found]:
    """A part read with every prefix that makes keys of it the expected ones, and without `module.` within its keys."""
    yield from _with_prefixes(label, part, expected)
    if not any("module" in key.split(".") for key in expected):
        plain = {re.sub(r"(?<=\.)module\.", "", key): value for key, value in part.items()}
        if plain.keys() != part.keys() and len(plain) == len(part):
            yield from _with_prefixes(label, plain, expected)


def _with_prefixes(label: str, part: dict[str, Tensor], expected: set[str]) -> Iterator[_Found]:
    prefixes: Counter[str] = Counter({"": 0})
    for key in part:
        pieces = key.split(".")
        for start in range(len(pieces)):
            if ".".join(pieces[start:]) in expected:
                prefixes[".".join(pieces[:start]) + ("." if start else "")] += 1
    for prefix, matches in prefixes.items():
        state = {key.removeprefix(prefix): value for key, value in part.items() if key.startswith(prefix)}
        yield _Found(label, prefix, state, matches, len(part) - len(state))


def _meant(best: list[_Found], source: str) -> list[_Found]:
    """The averaged one, or all where all are equal, of several that have all keys."""
    averaged = [each for each in best if each.averaged]
    if averaged and len(averaged) < len(best):
        others = listing(str(each) for each in best if not each.averaged)
        log.info("%s: took the averaged weights in %s, and not those in %s.", source, averaged[0], others)
    candidates = averaged or best
    if any(not _equal(candidates[0].state, each.state) for each in candidates[1:]):
        raise WeightsError(
            f"{source} holds several networks with these keys: {listing(map(str, candidates))}. Save the weights of "
            "the one that is meant alone: `torch.save(network.state_dict(), path)`."
        )
    return candidates


def _equal(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    common = state.keys() & other.keys()
    return all(state[key].shape == other[key].shape and torch.equal(state[key], other[key]) for key in common)
