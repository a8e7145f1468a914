"""A report on a data set: its size, balance, duplicates, groups and skipped files."""

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
MIN_IMBALANCE = 3.0  # largest over smallest class, above which class weights are suggested
MAX_HALF_WIDTH = 0.1  # of the interval of an accuracy, above which there is a warning
MAX_REASONS = 3  # shown, for which files were skipped
MAX_CLASSES, ROWS_PER_COLUMN = 200, 50  # of the plot


def data_report(catalogue: Catalogue, split: Split) -> dict[str, Any]:
    """Count the images that are used, and list the files that are not.

    Parameters
    ----------
    catalogue
        The data set; after decoding, it also lists the files that could not be decoded.
    split
        Of the same catalogue. Without a validation part, the development part is used for both.

    Returns
    -------
    dict
        As JSON can hold it. ``name``, ``fingerprint`` and ``images``; ``classes``, with the images
        of each in the development, validation and held-out part; ``imbalance``, the largest class over
        the smallest in the development part; ``duplicates``, each with its original; ``near_duplicates``,
        pairs that show one photograph; ``groups``, the ``count`` of groups of two images or more, their
        ``images``, and the ``largest``; ``held_out_groups``, the number of independent groups among the
        held-out images; ``unused``, images that belong to others on another side of the split; ``skipped``
        and ``remarks``, files grouped by reason, the most frequent first.

    Examples
    --------
    >>> from toolkit.training.data.catalogue import open_catalogue
    >>> from toolkit.training.data.splits import split
    >>> digits = open_catalogue("digits")
    >>> report = data_report(digits, split(digits, 0.15))
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
        "duplicates": [_duplicate_row(item) for item in catalogue.skipped if isinstance(item, Duplicate)],
        "near_duplicates": [_near_duplicate_row(catalogue, *pair) for pair in split.copies.tolist()],
        "groups": _groups(split),
        "held_out_groups": split.held_out_groups,
        "unused": [catalogue.path(index) for index in split.unused.tolist()],
        "skipped": _grouped(
            (item.path, item.reason, item.count) for item in catalogue.skipped if not isinstance(item, Duplicate)
        ),
        "remarks": _grouped((remark.path, remark.text, 1) for remark in catalogue.remarks),
    }


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """A few lines about a data set for the terminal: its size, its balance, and what needs attention."""
    return [
        _size_line(report),
        *_balance_lines(report["classes"], report["imbalance"]),
        *_small_data_lines(report["classes"], report["held_out_groups"]),
        *_duplicate_lines(report["duplicates"]),
        *_near_duplicate_lines(report["near_duplicates"]),
        *_group_lines(report["groups"], len(report["unused"])),
        *_reason_lines("skipped", report["skipped"], MAX_REASONS),
        *_reason_lines("note on", report["remarks"], 1),
    ]


def class_balance_plot(report: Mapping[str, Any]) -> Figure:
    """A bar chart of the images of each class in each part, the largest class first.

    Of more than 200 classes the 100 largest and the 100 smallest are drawn.
    """
    ordered = sorted(report["classes"], key=_total, reverse=True)
    drawn = ordered if len(ordered) <= MAX_CLASSES else ordered[: MAX_CLASSES // 2] + ordered[-MAX_CLASSES // 2 :]
    columns = math.ceil(len(drawn) / ROWS_PER_COLUMN)
    height = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(4.5 * columns + 2.5, 0.2 * height + 1.4), layout="constrained")
    labels = dict(PARTS)
    if not any(row["validation"] for row in ordered):  # as in report_lines
        labels = {"development": "to train and validate on", "held_out": PARTS["held_out"]}
    for index, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        _bars(axes, drawn[index * height : (index + 1) * height], labels)
        axes.set(xlim=(0, 1.2 * _total(drawn[0])), ylim=(height - 0.4, -0.6), xlabel="images")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(labels), frameon=False)
    of = f", {len(drawn)} of {len(ordered)}" if len(drawn) < len(ordered) else ""
    figure.suptitle(f"classes of {fonts.drawable_text(report['name'])}, largest first{of}")
    return fonts.draw_names(figure)


def _bars(axes: Axes, rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> None:
    """One bar for each class from top to bottom, divided into its parts and followed by its size."""
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


def _duplicate_row(item: Duplicate) -> dict[str, str]:
    (of, original_of), (part, original_part) = item.classes, item.parts
    return {
        "path": item.path, "class": of, "part": part,
        "original": item.original, "original_class": original_of, "original_part": original_part,
    }  # fmt: skip


def _near_duplicate_row(catalogue: Catalogue, first: int, second: int) -> dict[str, str]:
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
    """Files by reason; reasons that differ only in numbers, or after a colon, are one."""
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
    """The reason in full if all members have the same."""
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
    if imbalance >= MIN_IMBALANCE:
        line += f", {imbalance:.1f} times as many; consider --class-weights balanced"
    return [
        line,
        *_missing_lines(classes, "validation", "these have no image to be validated on"),
        *_missing_lines(classes, "held_out", "these have no held-out image to be measured on"),
    ]


def _missing_lines(classes: Sequence[Mapping[str, Any]], part: str, what: str) -> list[str]:
    """The classes that a part lacks; a validation part that does not exist lacks none."""
    missing = [row["class"] for row in classes if not row[part]]
    if not missing or (part == "validation" and len(missing) == len(classes)):
        return []
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return [f"{what}: {', '.join(missing[:3])}{more}"]


def _small_data_lines(classes: Sequence[Mapping[str, Any]], groups: int) -> list[str]:
    """Warnings about measurements on few images."""
    lines, held_out = [], sum(row["held_out"] for row in classes)
    within = 0.98 / math.sqrt(groups + 3.84)  # half of Wilson's 95 % interval at an accuracy of 0.5
    of = f" in {groups:,} {'groups' if groups > 1 else 'group'}" if groups < held_out else ""
    if held_out and within > MAX_HALF_WIDTH:
        lines.append(
            f"{held_out:,} held-out {_images(held_out)}{of} give an accuracy to within {within:.0%} only;"
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


def _group_lines(groups: Mapping[str, int], unused: int) -> list[str]:
    if not groups["count"]:
        return []
    line = (
        f"{groups['images']:,} images belong together in {groups['count']:,}"
        f" {'groups' if groups['count'] > 1 else 'group'}, the largest of {groups['largest']:,}; none is split"
    )
    if unused:
        line += f", for which {unused:,} {_images(unused)} {'are' if unused > 1 else 'is'} not used"
    return [line]


def _duplicate_lines(duplicates: Sequence[Mapping[str, str]]) -> list[str]:
    if not duplicates:
        return []
    conflicts = [item for item in duplicates if item["class"] != item["original_class"]]
    line = f"{_files(len(duplicates))} skipped as copies of others"
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
