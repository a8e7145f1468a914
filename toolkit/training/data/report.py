"""What a data set is and what was found in it, for the run that is trained on it and for the person who starts it."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from toolkit.plotting import fonts
from toolkit.plotting.style import BLUE, GREY, ORANGE, class_label
from toolkit.training.data.catalogue import Catalogue, Duplicate
from toolkit.training.data.splits import Split

PARTS = {"development": "to train on", "validation": "to validate on", "held_out": "held out"}
COLOURS = {"development": BLUE, "validation": GREY, "held_out": ORANGE}
IMBALANCED = 3.0  # times the smallest class, from which on weighting the classes is worth a trial
COARSE = 0.1  # half of the interval of an accuracy, from which on it is worth saying
REASONS_SHOWN = 3  # of those for which files were skipped
MOST_DRAWN, ROWS_A_COLUMN = 200, 50  # classes of the figure


def data_report(catalogue: Catalogue, split: Split) -> dict[str, Any]:
    """Count what is used, and name what is not.

    Parameters
    ----------
    catalogue
        The data set; after decoding, it also tells what could not be decoded.
    split
        Of the same catalogue. Where no image is set apart to validate on, the development part serves both.

    Returns
    -------
    dict
        What JSON can hold. ``name``, ``fingerprint`` and ``images``; ``classes``, with the images
        of each in the development, validation and held-out part; ``imbalance``, the largest class over
        the smallest in the development part; ``duplicates``, each with its original; ``near_duplicates``,
        pairs that show one photograph; ``groups``, how many of two images or more are kept whole, how many
        images they have and how many the largest has; ``held_out_groups``, as how many images those held out
        count at least; ``set_aside``, images that serve nothing, since those
        that they belong to are on another side; ``skipped`` and ``remarks``, files grouped by reason, the
        most frequent first.

    Examples
    --------
    >>> from toolkit.training.data.catalogue import open_catalogue
    >>> from toolkit.training.data.splits import split
    >>> digits = open_catalogue("digits")
    >>> report = survey(digits, split(digits, 0.15))
    >>> report["classes"][8]
    {'class': '8', 'development': 151, 'validation': 0, 'held_out': 23}
    >>> for line in report_lines(report):
    ...     print(line)
    digits: 1,797 images of 10 classes, 264 of them held out
    a class has 143 (7) to 166 (1) images to train and validate on
    """
    classes, labels = catalogue.classes, catalogue.labels
    counts = {part: np.bincount(labels[getattr(split, part)], minlength=len(classes)).tolist() for part in PARTS}
    return {
        "name": catalogue.name,
        "fingerprint": catalogue.fingerprint,
        "images": len(catalogue),
        "classes": [
            {"class": name, **{part: counts[part][label] for part in PARTS}} for label, name in enumerate(classes)
        ],
        "imbalance": max(counts["development"]) / max(1, min(counts["development"])),
        "duplicates": [_pair(item) for item in catalogue.skipped if isinstance(item, Duplicate)],
        "near_duplicates": [_copies(catalogue, *pair) for pair in split.copies.tolist()],
        "groups": _groups(split),
        "held_out_groups": split.held_out_groups,
        "set_aside": [catalogue.path(index) for index in split.unused.tolist()],
        "skipped": _grouped(
            (item.path, item.reason, item.count) for item in catalogue.skipped if not isinstance(item, Duplicate)
        ),
        "remarks": _grouped((remark.path, remark.text, 1) for remark in catalogue.remarks),
    }


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """A few lines about a data set for the terminal: its size, its balance, and what to look at.

    Parameters
    ----------
    report
        As ``survey`` gives it.
    """
    return [
        _size_line(report),
        *_balance_lines(report["classes"], report["imbalance"]),
        *_few_lines(report["classes"], report["held_out_groups"]),
        *_duplicate_lines(report["duplicates"]),
        *_near_duplicate_lines(report["near_duplicates"]),
        *_group_lines(report["groups"], len(report["set_aside"])),
        *_reason_lines("skipped", report["skipped"], REASONS_SHOWN),
        *_reason_lines("note on", report["remarks"], 1),
    ]


def class_balance_plot(report: Mapping[str, Any]) -> Figure:
    """How many images each class has in which part, the largest class first.

    Parameters
    ----------
    report
        As ``survey`` gives it. Of more than 200 classes the 100 largest and the 100 smallest are drawn.
    """
    ordered = sorted(report["classes"], key=_total, reverse=True)
    drawn = ordered if len(ordered) <= MOST_DRAWN else ordered[: MOST_DRAWN // 2] + ordered[-MOST_DRAWN // 2 :]
    columns = math.ceil(len(drawn) / ROWS_A_COLUMN)
    height = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(4.5 * columns + 2.5, 0.2 * height + 1.4), layout="constrained")
    labels = dict(PARTS)
    if not any(row["validation"] for row in ordered):  # as in the lines
        labels = {"development": "to train and validate on", "held_out": PARTS["held_out"]}
    for index, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        _bars(axes, drawn[index * height : (index + 1) * height], labels)
        axes.set(xlim=(0, 1.2 * _total(drawn[0])), ylim=(height - 0.4, -0.6), xlabel="images")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(labels), frameon=False)
    of = f", {len(drawn)} of {len(ordered)}" if len(drawn) < len(ordered) else ""
    figure.suptitle(f"classes of {fonts.drawable_text(report['name'])}, largest first{of}")
    return fonts.draw_names(figure)


def _bars(axes: Axes, rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> None:
    """One bar a class from top to bottom, its parts side by side and its size behind them."""
    places, left = np.arange(len(rows)), np.zeros(len(rows))
    for part, label in labels.items():
        counts = np.array([row[part] for row in rows])
        axes.barh(places, counts, left=left, height=0.8, color=COLOURS[part], label=label)
        left += counts
    for place, total in zip(places.tolist(), left.tolist(), strict=True):
        axes.text(total, place, f" {total:,.0f}", va="center", fontsize=7, color=GREY)
    axes.set_yticks(places, [class_label(row["class"]) for row in rows], fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _pair(item: Duplicate) -> dict[str, str]:
    (of, original_of), (part, original_part) = item.classes, item.parts
    return {
        "path": item.path, "class": of, "part": part,
        "original": item.original, "original_class": original_of, "original_part": original_part,
    }  # fmt: skip


def _copies(catalogue: Catalogue, first: int, second: int) -> dict[str, str]:
    pair = (first, second)
    (of, other_of), (part, other_part) = (
        [catalogue.classes[catalogue.labels[index]] for index in pair],
        [str(catalogue.parts[index]) for index in pair],
    )
    return {
        "path": catalogue.path(first), "class": of, "part": part,
        "other": catalogue.path(second), "other_class": other_of, "other_part": other_part,
    }  # fmt: skip


def _groups(split: Split) -> dict[str, int]:
    sizes = np.zeros(0, np.int64) if split.groups is None else np.bincount(split.groups)
    sizes = sizes[sizes > 1]
    return {"count": len(sizes), "images": int(sizes.sum()), "largest": int(sizes.max(initial=0))}


def _grouped(files: Iterable[tuple[str, str, int]]) -> list[dict[str, Any]]:
    """Files by reason; reasons that differ in numbers or after a colon are one. A folder counts as many files."""
    groups, counts = defaultdict(list), Counter[str]()
    for path, reason, count in files:
        group = re.sub(r"\b\d[\d,.]*(?=\s|$)", "N", reason.split(": ")[0])
        groups[group].append({"path": path, "reason": reason, **({"count": count} if count > 1 else {})})
        counts[group] += count
    return [
        {"reason": _common(reason, groups[reason]), "count": count, "files": groups[reason]}
        for reason, count in sorted(counts.items(), key=lambda group: (-group[1], group[0]))
    ]


def _common(reason: str, members: Sequence[Mapping[str, Any]]) -> str:
    """The reason in full where all members have the same."""
    full = {member["reason"] for member in members}
    return full.pop() if len(full) == 1 else reason


def _size_line(report: Mapping[str, Any]) -> str:
    held_out = sum(row["held_out"] for row in report["classes"])
    return (
        f"{report['name']}: {report['images']:,} images of {len(report['classes'])} classes,"
        f" {held_out:,} of them held out"
    )


def _balance_lines(classes: Sequence[Mapping[str, Any]], imbalance: float) -> list[str]:
    small, large = (choose(classes, key=lambda row: row["development"]) for choose in (min, max))
    fewest, most = small["development"], large["development"]
    if fewest == most:
        line = f"each class has {most:,} images"
    else:
        line = f"a class has {fewest:,} ({small['class']}) to {most:,} ({large['class']}) images"
    line += " to train on" if any(row["validation"] for row in classes) else " to train and validate on"
    if imbalance >= IMBALANCED:
        line += f", {imbalance:.1f} times as many; consider --class-weights balanced"
    return [
        line,
        *_missing_lines(classes, "validation", "these have no image to be validated on"),
        *_missing_lines(classes, "held_out", "these have no held-out image to be measured on"),
    ]


def _missing_lines(classes: Sequence[Mapping[str, Any]], part: str, what: str) -> list[str]:
    """The classes that a part lacks; a validation part that is yet to be drawn lacks none."""
    missing = [row["class"] for row in classes if not row[part]]
    if not missing or (part == "validation" and len(missing) == len(classes)):
        return []
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return [f"{what}: {', '.join(missing[:3])}{more}"]


def _few_lines(classes: Sequence[Mapping[str, Any]], groups: int) -> list[str]:
    """What can and what cannot be measured with few images."""
    lines, held_out = [], sum(row["held_out"] for row in classes)
    within = 0.98 / math.sqrt(groups + 3.84)  # half of Wilson's 95 % interval at an accuracy of 0.5
    of = f" in {groups:,} {'groups' if groups > 1 else 'group'}" if groups < held_out else ""
    if held_out and within > COARSE:
        lines.append(
            f"{held_out:,} held-out {_images(held_out)}{of} tell an accuracy to within {within:.0%} only;"
            " more make it worth comparing"
        )
    single = [row["class"] for row in classes if row["development"] == 1]
    if single:
        no_other = "" if any(row["validation"] for row in classes) else " and none to validate on"
        having = f"{len(single):,} classes have" if len(single) > 1 else f"class {single[0]} has"
        more = f", such as {single[0]}" if len(single) > 1 else ""
        lines.append(f"{having} one image to train on{no_other}{more}")
    return lines


def _near_duplicate_lines(pairs: Sequence[Mapping[str, str]]) -> list[str]:
    if not pairs:
        return []
    line = f"near-duplicates: {len(pairs):,} {'pairs' if len(pairs) > 1 else 'pair'} of images show one photograph"
    conflicts = [pair for pair in pairs if pair["class"] != pair["other_class"]]
    if not conflicts:
        return [f"{line}, such as {pairs[0]['path']} and {pairs[0]['other']}"]
    first = conflicts[0]
    return [f"{line}; {len(conflicts):,} of them under two classes, such as {first['path']} and {first['other']}"]


def _group_lines(groups: Mapping[str, int], aside: int) -> list[str]:
    if not groups["count"]:
        return []
    line = (
        f"{groups['images']:,} images belong together in {groups['count']:,}"
        f" {'groups' if groups['count'] > 1 else 'group'}, the largest of {groups['largest']:,}; none is torn apart"
    )
    if aside:
        line += f", and {aside:,} {_images(aside)} set aside for it"
    return [line]


def _duplicate_lines(duplicates: Sequence[Mapping[str, str]]) -> list[str]:
    if not duplicates:
        return []
    conflicts = [item for item in duplicates if item["class"] != item["original_class"]]
    line = f"{_files(len(duplicates))} left out as copies of others"
    if conflicts:
        first = conflicts[0]
        line += f"; {len(conflicts):,} of them under another class, such as {first['path']} and {first['original']}"
    return [line]


def _reason_lines(verb: str, groups: Sequence[Mapping[str, Any]], shown: int) -> list[str]:
    lines = [
        f"{verb} {_files(group['count'])}: {group['reason']}"
        + (f", such as {group['files'][0]['path']}" if len(group["files"]) > 1 else f" ({group['files'][0]['path']})")
        for group in groups[:shown]
    ]
    rest = groups[shown:]
    if rest:
        lines[-1] += f"; and {sum(group['count'] for group in rest):,} more for other reasons"
    return lines


def _files(count: int) -> str:
    return f"{count:,} files" if count > 1 else "1 file"


def _images(count: int) -> str:
    return "images" if count > 1 else "image"


def _total(row: Mapping[str, Any]) -> int:
    return sum(int(row[part]) for part in PARTS)
