"""Published figures beside measured ones, as people read them: entry points by name, see `harness.registry.VIEWS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from harness.advice import METRICS, Kind
from harness.claims import RATIO, Checked, Claim, Figure, Judged, Report, Table, title
from harness.summary import Estimate
from reports.blocks import Block, Legend, Line, Section
from reports.formatting import clean, counted, listed, percent, significant, time_unit
from reports.page import Page
from reports.table import Cell, Column, Drawn, Emphasis, assembled
from reports.tracking import rendered

_EMPHASIS: Mapping[str, Emphasis] = {"holds": "good", "does not hold": "bad", "undecided": ""}
_KINDS: Mapping[str, Kind] = {"composed": "duration"}
_LEGEND = (
    "measured = with its 99 % interval for a ratio, 95 % for a percentile; holds = all of the interval lies within the "
    "tolerance of the claimed figure; does not hold = none of it does; undecided = it reaches across. measured/claimed "
    "below 1 = less than claimed."
)


def findings(report: Report, *, format_: str, color: bool = False, width: int | None = None) -> str:
    """Return what `harness claims` prints."""
    return rendered(draw_findings(report), format_=format_, color=color, width=width)


def listing(
    table: Table,
    *,
    places: Mapping[str, tuple[str | None, bool]],
    format_: str,
    color: bool = False,
    width: int | None = None,
) -> str:
    """Return what `harness claims --list` prints; `places` says where each claim would be run here."""
    return rendered(draw_listing(table, places), format_=format_, color=color, width=width)


def draw_findings(report: Report) -> Page:
    """Return the page of measured claims, without a format."""
    blocks: list[Block] = []
    pairs = [(one, judged) for one in report.checked for judged in one.figures]
    if pairs:
        blocks += [assembled(_columns(pairs)), Legend(texts=(_LEGEND,))]
    for heading, lines in (
        ("no verdict", list(_reasons(report.checked))),
        (
            "measured on another device",
            [_line(one.claim, one.claim.elsewhere) for one in report.checked if one.elsewhere],
        ),
        ("conditions", [_line(one.claim, one.claim.conditions) for one in report.checked if one.run]),
        ("comparisons", list(_runs(report.checked))),
    ):
        if lines:
            blocks.append(Section(title=heading, lines=tuple(lines)))
    return Page(title=f"claims of {clean(report.source)}", blocks=tuple(blocks), closing=_closing(report))


def draw_listing(table: Table, places: Mapping[str, tuple[str | None, bool]]) -> Page:
    """Return the page of a table of claims, without a format: a section a claim, a line a figure.

    No table of one row a figure: what a figure is of is too long for it to stay whole in a terminal.
    """
    blocks = tuple(
        Section(
            title=clean(f"{claim.id}: {claim.subject} ({', '.join(claim.models)}, {claim.device})"),
            lines=tuple(_listed(claim, figure, *places[claim.id]) for figure in claim.figures),
        )
        for claim in table.claims
    )
    count = sum(device is not None for device, _ in places.values())
    closing = (
        f"{count} of {counted(len(table.claims), 'claim', 'claims')} can be run on this machine, wholly or in part."
    )
    return Page(title=f"claims of {clean(table.source)}", blocks=blocks, closing=closing)


def _listed(claim: Claim, figure: Figure, device: str | None, elsewhere: bool) -> Line:
    tolerance = f", tolerance {percent(figure.tolerance)}" if figure.tolerance else ""
    here, possible = _here(claim, figure, device, elsewhere)
    text = f"{_what(figure, several=True)}{tolerance}: {here}"
    return Line(label=_claimed(figure), text=clean(text), emphasis="" if possible else "muted")


def _columns(pairs: list[tuple[Checked, Judged]]) -> list[Drawn]:
    columns: list[Drawn] = [
        _text("claim", "claim", [one.claim.id for one, _ in pairs]),
        _text("figure", "figure", [_what(judged.figure, several=len(one.claim.models) > 1) for one, judged in pairs]),
        _text("claimed", "claimed", [_claimed(judged.figure) for _, judged in pairs]),
    ]
    measured = [
        Cell(text=_measured(judged.figure, judged.measured), value=judged.measured.value) if judged.measured else Cell()
        for _, judged in pairs
    ]
    columns.append((Column(key="measured", title="measured"), measured))
    ratios = [
        Cell(text=significant(judged.ratio), value=judged.ratio) if judged.ratio else Cell() for _, judged in pairs
    ]
    columns.append((Column(key="ratio", title="measured/claimed"), ratios))
    columns.append(_text("on", "on", [_on(one, judged) for one, judged in pairs]))
    verdicts = [
        Cell(
            text=f"{judged.verdict}{' (on another device)' if one.elsewhere and judged.measured else ''}",
            value=judged.verdict,
            emphasis=_EMPHASIS.get(judged.verdict, "muted"),
        )
        for one, judged in pairs
    ]
    columns.append((Column(key="verdict", title="verdict", align="left"), verdicts))
    return columns


def _on(one: Checked, judged: Judged) -> str:
    if judged.measured is None or one.device is None:
        return ""
    return one.device if one.elsewhere else f"{one.device} ({clean(one.claim.device)})"


def _what(figure: Figure, *, several: bool = False) -> str:
    over = f" over {figure.over}" if figure.over else ""
    of = f", {figure.model}" if several and figure.model else ""
    return f"{title(figure.metric)} of {figure.composition or figure.case}{over}{of}"


def _claimed(figure: Figure) -> str:
    sense = "" if figure.sense == "about" else f"{figure.sense} "
    return sense + _shown(figure.metric, figure.value, "{:.4g}".format)  # as published: no zeros that nobody wrote


def _measured(figure: Figure, found: Estimate) -> str:
    text = _shown(figure.metric, found.value)
    if found.low == found.high:
        return text
    return f"{text} [{_shown(figure.metric, found.low)}, {_shown(figure.metric, found.high)}]"


def _shown(metric: str, value: float, number: Callable[[float], str] = significant) -> str:
    kind = METRICS[metric].kind if metric in METRICS else _KINDS.get(metric)
    match kind:
        case "duration":
            unit = time_unit([value])
            return f"{number(value / unit.seconds)} {unit.name}"
        case "size":
            return f"{number(value / 1e9)} GB"
        case "rate":
            return f"{number(value)} items/s"
        case _:
            return f"{number(value)}{'x' if metric == RATIO else ''}"


def _here(claim: Claim, figure: Figure, device: str | None, elsewhere: bool) -> tuple[str, bool]:
    """Return where a figure would be measured on this machine, or what that needs; and whether it can be."""
    if claim.lacks or figure.lacks:
        return "not by this command", False
    if device is None or (elsewhere and figure.metric != RATIO):
        return f"needs the {claim.device}", False
    return f"on {device} instead" if elsewhere else f"on {device}", True


def _reasons(checked: list[Checked]) -> Iterator[Line]:
    for one in checked:
        reasons: dict[str, list[str]] = {}
        for judged in one.figures:
            if judged.reason:
                reasons.setdefault(judged.reason, []).append(title(judged.figure.metric))
        for reason, metrics in reasons.items():
            of = (
                ""
                if len(reasons) == 1 and len(metrics) == len(one.figures)
                else f" ({listed(list(dict.fromkeys(metrics)))})"
            )
            yield Line(label=f"{clean(one.claim.id)}{of}", text=clean(reason), emphasis="muted")


def _runs(checked: list[Checked]) -> Iterator[Line]:
    for one in checked:
        if one.run:
            before = ", measured before" if one.cached else ""
            yield Line(label=clean(one.claim.id), text=f"{clean(one.run)}{before}")


def _closing(report: Report) -> str:
    every = [judged.verdict for one in report.checked for judged in one.figures]
    said = [f"{every.count(word)} {word}" for word in dict.fromkeys(sorted(every, key=_order))]
    if not said:
        return "There is no claim in the table."
    head = "Interrupted; what was finished is kept. " if report.interrupted else ""
    return f"{head}Of {counted(len(every), 'figure', 'figures')}: {', '.join(said)}."


def _order(word: str) -> int:
    return ("holds", "does not hold", "undecided", "not measured", "not runnable").index(word)


def _line(claim: Claim, text: str) -> Line:
    return Line(label=clean(claim.id), text=clean(text))


def _text(key: str, heading: str, texts: list[str]) -> Drawn:
    return Column(key=key, title=heading, align="left"), [Cell(text=clean(text) or "-", value=text) for text in texts]
