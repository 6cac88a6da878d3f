"""What becomes of each norm layer of a model, before anything is changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from batchfree._checks import check_choice, check_num_groups, divisors, suggest
from batchfree._errors import ConfigError
from batchfree.audit.static import KINDS, kind_of
from batchfree.convert.kinds import Source, is_batch_norm, source_of
from batchfree.convert.plan_reading import SCHEMA, read_plan
from batchfree.convert.planned import MEASURED, PlannedLayer, add_reason
from batchfree.convert.replacing import unwrapped
from batchfree.nn import Groups

Keep = Callable[[str, nn.Module], bool]
__all__ = ["ConversionPlan", "Keep", "PlannedLayer", "plan_conversion"]


@dataclass
class ConversionPlan:
    """What becomes of each norm layer of a model: print it, change it, save it, apply it.

    Attributes:
        model: the model's class or name.
        layers: every norm layer, in the order of `named_modules`.
        notes: what to know before it is applied.

    Example:
        >>> import batchfree, torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.BatchNorm2d(64))
        >>> plan = batchfree.plan_conversion(net, groups=batchfree.Groups(32))
        >>> plan["1"].new
        'GroupNorm(32, 64)'
        >>> plan["1"].groups = 8
        >>> ConversionPlan.from_json(plan.to_json()) == plan
        True
    """

    model: str
    layers: list[PlannedLayer]
    notes: list[str] = field(default_factory=list)

    def __getitem__(self, path: str) -> PlannedLayer:
        """The layer of that name.

        Raises:
            KeyError: there is none.
        """
        for layer in self.layers:
            if path == layer.path or path in layer.aliases:
                return layer
        known = [layer.path for layer in self.layers]
        raise KeyError(f"the plan has no layer {path!r}{suggest(path, known)}")

    @property
    def converted(self) -> list[PlannedLayer]:
        """The layers that change."""
        return [layer for layer in self.layers if layer.action == "convert"]

    def keep(self, pattern: str, reason: str = "kept by name") -> int:
        """Keeps the BatchNorms whose names match, `*` and `?` as in file names.

        Returns:
            How many.

        Raises:
            ConfigError: no layer that was to be converted matches.
        """
        found = [x for x in self.converted if _matches(pattern, x.path, *x.aliases)]
        if not found:
            raise ConfigError(f"no layer to convert matches {pattern!r}")
        for layer in found:
            layer.action, layer.reason = "keep", reason
        return len(found)

    def sources(self, model: nn.Module) -> Iterator[tuple[PlannedLayer, Source]]:
        """The layers to convert with what stands there now.

        Raises:
            ConfigError: the model is not the one that was planned for, a change of the plan cannot
                be carried out, or a BatchNorm of the model has no row.
        """
        modules = dict(model.named_modules(remove_duplicate=False))
        planned = {id(modules[row.path]) for row in self.layers if row.path in modules}
        lost = [n for n, m in modules.items() if id(m) not in planned and is_batch_norm(m)]
        for layer in self.converted:
            module = modules.get(layer.path)
            if module is None:
                raise ConfigError(
                    f"the plan is of another model: it has no module {layer.path!r}"
                    f"{suggest(layer.path, modules)}"
                )
            source = source_of(module) if is_batch_norm(module) else "it is no BatchNorm"
            if isinstance(source, str):
                raise ConfigError(
                    f"{layer.path!r} ({type(module).__name__}) cannot be converted: {source}"
                )
            if source.channels != layer.channels:
                raise ConfigError(
                    f"the plan is of another model: {layer.path!r} has {source.channels} channels, "
                    f"the plan says {layer.channels}"
                )
            for groups in (layer.groups, *layer.candidates):
                try:
                    check_num_groups(groups, layer.channels)
                except (TypeError, ValueError) as error:
                    raise ConfigError(f"layer {layer.path!r}: {error}") from error
            yield layer, source
        if lost:
            raise ConfigError(
                f"the plan has no row for {len(lost)} of the model's BatchNorms ({lost[0]!r} "
                'first); where a layer is to stay, set its action to "keep" and leave its row in'
            )

    def to_json(self) -> str:
        """All of it, for `from_json`."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> ConversionPlan:
        """The plan that `to_json` wrote.

        Raises:
            ConfigError: the text is no plan.
        """
        found = read_plan(text)
        rows = [PlannedLayer(**row) for row in found.pop("layers")]
        return cls(layers=rows, **found)

    def __str__(self) -> str:
        from batchfree.convert.text import plan_lines

        return plan_lines(self)

    def __rich__(self) -> Any:
        from batchfree.convert.text import plan_table

        return plan_table(self)


PAPER = Groups(32, min_elements_per_group=16)
"""The paper's 32 groups, with its other choice, 16 channels a group, as the least (Table 3)."""


def plan_conversion(
    model: nn.Module,
    groups: Groups | int | Literal["auto"] | None = None,
    *,
    keep: str | list[str] | Keep = (),  # type: ignore[assignment]
    name: str | None = None,
) -> ConversionPlan:
    """Says what becomes of each norm layer when a BatchNorm model is converted; changes nothing.

    Args:
        model: any module, on any device, the meta device included; what is in a DataParallel or
            compiled one is planned for.
        groups: the policy for the number of groups; a number n is `Groups(n)`; `"auto"` lets the
            calibration choose for each layer by measured error, among the divisors up to 32. None
            is 32 groups of 16 channels or more: a group of one or two channels loses what the
            model knew by their means, and no calibration brings it back.
        keep: BatchNorms that stay: names with `*` and `?`, or a predicate of (name, module). Any
            name of a module that is used in several places counts.
        name: of the model, for the table.

    Returns:
        The plan, in the order of `named_modules`; print it, change `plan["layer1.0.bn1"].groups`,
        save `plan.to_json()`.

    Raises:
        ConfigError: a name in `keep` that matches nothing, or a policy that cannot be met.

    Example:
        >>> import batchfree, torchvision
        >>> plan = batchfree.plan_conversion(torchvision.models.resnet18(), keep="layer4.*")
        >>> len(plan.converted), plan["bn1"].groups, plan["layer4.0.bn1"].action
        (15, 4, 'keep')
    """
    model = unwrapped(model)
    if not (groups is None or isinstance(groups, (str, Groups)) or type(groups) is int):
        raise ConfigError(f"groups must be a number, a Groups or 'auto', got {groups!r}")
    auto = isinstance(groups, str)
    if isinstance(groups, str):
        check_choice(groups, ("auto",), "groups, where it is a word,")
    policy = PAPER if groups is None or isinstance(groups, str) else groups
    policy = Groups(policy) if isinstance(policy, int) else policy
    patterns = [keep] if isinstance(keep, str) else [] if callable(keep) else list(keep)
    used: set[str] = set()
    names: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(path)
    plan = ConversionPlan(name or type(model).__name__, [])
    untrained = 0
    for path, module in model.named_modules():
        paths = names[id(module)]
        row, source = _row(path, module)
        if row is None:
            continue
        row.aliases = paths[1:]
        plan.layers.append(row)
        kept = [p for p in patterns if _matches(p, *paths)]
        used.update(kept)
        if row.action == "convert":
            assert source is not None
            if kept or (callable(keep) and any(keep(p, module) for p in paths)):
                row.action, row.reason = "keep", "kept by name" if kept else "kept by predicate"
                continue
            _choose(row, policy, auto)
            untrained += source.never_ran
    if missing := [p for p in patterns if p not in used]:
        known = [row.path for row in plan.layers]
        raise ConfigError(f"keep={missing[0]!r} matches no norm layer{suggest(missing[0], known)}")
    if untrained:
        plan.notes.append(
            f"the running statistics of {untrained} BatchNorms are as they were made (mean 0, "
            "variance 1): load the trained weights first, or the result reproduces an untrained net"
        )
    if not plan.converted:
        plan.notes.append("there is no BatchNorm to convert")
    return plan


def _row(path: str, module: nn.Module) -> tuple[PlannedLayer | None, Source | None]:
    kind, old = kind_of(module, False), type(module).__name__
    if kind is None:
        return None, None
    if not is_batch_norm(module):
        return PlannedLayer(path, old, kind, "leave", KINDS.get(kind, "")), None
    source = source_of(module)
    if isinstance(source, str):
        return PlannedLayer(path, old, kind, "keep", source), None
    then = [f"{n}: {type(getattr(module, n)).__name__}" for n in source.then]
    if source.activation is not None:
        then = [source.activation]
    reason = ""
    if kind == "FrozenBatchNorm":
        reason = "frozen: gamma and beta become parameters that learn"
    elif not source.affine:
        reason = "affine-free: gamma and beta are added"
    elif kind == "BatchNorm without running statistics":
        reason = "no running statistics: gamma and beta as they are, unless calibrated"
    row = PlannedLayer(
        path, old, kind, "convert", reason, source.channels, eps=source.eps, then=then
    )
    return row, source


def _choose(row: PlannedLayer, policy: Groups, auto: bool) -> None:
    """The number of groups, and why where it is not the wish itself."""
    if policy is PAPER and row.channels < 16:
        row.groups = 1
        add_reason(row, "fewer than 16 channels: one group")
    else:
        try:
            row.groups = policy.resolve(row.channels)
        except ValueError as error:
            raise ConfigError(
                f"layer {row.path!r}: {error}; keep it with keep={row.path!r}, or change the policy"
            ) from error
        wish = policy.num_groups
        if wish is not None and row.channels % wish:
            add_reason(row, f"{wish} does not divide {row.channels} channels")
        elif wish is not None and row.groups < wish:
            add_reason(row, f"{policy.min_elements_per_group} channels a group or more")
    if auto:
        row.candidates = [d for d in divisors(row.channels) if d <= 32]
        add_reason(row, MEASURED)


def _matches(pattern: str, *paths: str) -> bool:
    return any(fnmatchcase(path, pattern) for path in paths)
