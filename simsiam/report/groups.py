"""Groups of runs that differ only in the seed. Each chart has one line for each group."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from string import ascii_uppercase
from typing import Any, NamedTuple

from simsiam.config.commands import PRETRAIN_DEFAULTS
from simsiam.report.records import Run, replace_unprintable
from simsiam.report.status import describe_status
from utils.settings import to_flags

MAX_DESCRIPTION = 90  # characters of the settings in a group's label
MAX_NAMES = 5  # of the runs of a group in its label


class Curve(NamedTuple):
    """The values of a metric by epoch, over the runs of a group.

    Attributes:
        means: the mean over the runs at each of the epochs.
        deviations: the standard deviation over the runs at each of the epochs; None for one run.
    """

    epochs: list[float]
    means: list[float]
    deviations: list[float] | None


class Group(NamedTuple):
    """Runs that differ only in the seed. A group often has a single run.

    Attributes:
        index: position among the groups. It determines the colour, dash and marker of lines.
        mark: short name of the group, such as "A"; empty if there is only one group.
        label: the settings that differ from those of the other groups, or the names of the runs.
    """

    runs: list[Run]
    index: int
    mark: str
    label: str

    @property
    def status(self) -> str:
        """The status of the runs; if they differ, each different status once."""
        return "; ".join(dict.fromkeys(map(describe_status, self.runs)))

    def curve(self, column: str) -> Curve:
        """Return the values of a metric at the epochs for which every run has one.

        Runs that never measured the metric do not count.

        Args:
            column: the metric's name in metrics.jsonl.
        """
        values_of_runs: list[dict[float, float]] = []  # the value by epoch, of each run
        for run in self.runs:
            value_by_epoch = {row["epoch"]: row[column] for row in run.rows if column in row}
            if value_by_epoch:
                values_of_runs.append(value_by_epoch)
        if not values_of_runs:
            return Curve([], [], None)

        epochs: list[float] = []
        means: list[float] = []
        deviations: list[float] = []
        for epoch in sorted(values_of_runs[0]):
            values = [of_run[epoch] for of_run in values_of_runs if epoch in of_run]
            if len(values) < len(values_of_runs):
                continue
            epochs.append(epoch)
            means.append(mean(values))
            if len(values) > 1:
                deviations.append(stdev(values))
        return Curve(epochs, means, deviations if len(values_of_runs) > 1 else None)

    def accuracy(self, name: str) -> str:
        """Return the mean and the standard deviation of an accuracy, as text.

        If several runs have the accuracy, the deviation is that between the runs. If a single run
        has it, the deviation is that between the seeds of finetune.

        Args:
            name: a key of `Run.accuracies`.
        """
        measured = [run.accuracies[name] for run in self.runs if name in run.accuracies]
        if len(measured) == 1:
            text = format_mean(measured[0])
        else:
            text = format_mean([mean(accuracies) for accuracies in measured])
        return text + self.describe_share(len(measured))

    def furthest_runs(self) -> list[Run]:
        """Return the runs that have trained for the most epochs."""
        last_epoch = max(run.rows[-1]["epoch"] for run in self.runs)
        return [run for run in self.runs if run.rows[-1]["epoch"] == last_epoch]

    def describe_share(self, measured: int) -> str:
        """Return " (1 of 3)" if a mean is of 1 of the 3 runs, and nothing if it is of all."""
        if 0 < measured < len(self.runs):
            return f" ({measured} of {len(self.runs)})"
        return ""


def format_mean(values: Sequence[float], number_format: str = ".2f") -> str:
    """Return "3.00" for a single value, "3.00 ± 1.00" for several, and "-" for none."""
    if not values:
        return "-"
    text = f"{mean(values):{number_format}}"
    if len(values) > 1:
        text += f" \u00b1 {stdev(values):{number_format}}"
    return text


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Put runs that differ only in the seed together, and label each group."""
    members: list[list[Run]] = []
    for run in runs:
        matches = [earlier_runs for earlier_runs in members if is_further_seed(run, earlier_runs)]
        if matches:
            matches[0].append(run)
        else:
            members.append([run])

    labels = label_groups(members)
    groups: list[Group] = []
    for i, group_members in enumerate(members):
        mark = make_mark(i) if len(members) > 1 else ""
        groups.append(Group(group_members, i, mark, labels[i]))
    return groups


def make_mark(index: int) -> str:
    """Return "A" to "Z" for the first groups, then "A1" to "Z1", "A2" to "Z2" and so on."""
    round_number, letter_index = divmod(index, len(ascii_uppercase))
    letter = ascii_uppercase[letter_index]
    return letter if round_number == 0 else f"{letter}{round_number}"


def is_further_seed(run: Run, group: Sequence[Run]) -> bool:
    """Return whether a run has the settings of a group and a seed that is new in the group."""
    settings = run.comparable_settings()
    if not settings or settings != group[0].comparable_settings():
        return False
    return run.settings.get("seed") not in [member.settings.get("seed") for member in group]


def label_groups(members: Sequence[Sequence[Run]]) -> list[str]:
    """Return a label for each group: the settings that differ between groups.

    The names of the runs are added where the settings do not tell the groups apart.
    """
    settings = [group[0].comparable_settings() for group in members]
    differing = find_differing_settings(settings)
    descriptions: list[str] = []
    for group_settings in settings:
        description = ""
        if group_settings and differing:
            shown = {name: group_settings[name] for name in differing if name in group_settings}
            description = describe_settings(shown)
        descriptions.append(description)

    labels: list[str] = []
    for group, description in zip(members, descriptions, strict=True):
        parts = [description] if description else []
        if not description or descriptions.count(description) > 1:
            parts += shorten_names([run.name for run in group])
        label = ", ".join(parts)
        if len(group) > 1:
            label += f" (mean of {len(group)} seeds)"
        labels.append(replace_unprintable(label))
    return labels


def shorten_names(names: Sequence[str]) -> list[str]:
    """Return the names of the runs of a group; of many runs, the first ones and the last one."""
    if len(names) <= MAX_NAMES:
        return list(names)
    return [*names[: MAX_NAMES - 2], "...", names[-1]]


def find_differing_settings(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the settings that have more than one value.

    Args:
        settings: those of each group; empty for a group whose settings could not be read.
    """
    readable = [group_settings for group_settings in settings if group_settings]
    all_names = dict.fromkeys(name for group_settings in readable for name in group_settings)
    differing: list[str] = []
    for name in all_names:
        values = {str(group_settings.get(name)) for group_settings in readable}
        if len(values) > 1:
            differing.append(name)
    return differing


def describe_settings(settings: Mapping[str, Any]) -> str:
    """Describe settings as text, such as "epochs 20, no-stop-grad".

    A number is always in the text. Another setting is in the text only if it differs from its
    default, since the flag of a default, such as --stop-grad, would say little. If no setting is in
    the text, the result is "baseline".
    """
    parts: list[str] = []
    for name, value in settings.items():
        is_number = type(value) in (int, float)
        is_changed = value is not None and value != PRETRAIN_DEFAULTS.get(name)
        if is_number or is_changed:
            # ["--epochs=20"], or ["--image-schedule", "16:15", "24:4"].
            flag = " ".join(to_flags({name: value}))
            parts.append(flag.removeprefix("--").replace("=", " ", 1))
    return shorten_list(parts) or "baseline"


def shorten_list(parts: Sequence[str]) -> str:
    """Return parts as a list of at most MAX_DESCRIPTION characters, which ends in "..." if cut.

    Each part is whole, except for a single one that is too long itself.
    """
    text = ""
    for i, part in enumerate(parts):
        longer = f"{text}, {part}" if text else part
        room = MAX_DESCRIPTION if i == len(parts) - 1 else MAX_DESCRIPTION - len(", ...")
        if len(longer) > room:
            return f"{text}, ..." if text else f"{part[: MAX_DESCRIPTION - 3]}..."
        text = longer
    return text
