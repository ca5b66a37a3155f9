"""The grammar of `--backends`: what it accepts and refuses, and that an id says all that is needed to ask again."""

from __future__ import annotations

import typing
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import registry
from harness.api import BackendOptions
from harness.errors import UsageError
from harness.plan import SLUG_CHARACTERS, Variant, find_baseline, parse_variants, with_precisions

OPTIONS = {name: registry.backend(name).Options for name in registry.BACKENDS}


def ids(*texts: str) -> list[str]:
    return [variant.id for variant in parse_variants(list(texts))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("eager", ["eager"]),
        ("eager,onnxruntime", ["eager", "onnxruntime"]),
        (" eager , onnxruntime ,", ["eager", "onnxruntime"]),
        ("tvm:trials=64", ["tvm:trials=64"]),
        ("tvm:trials=64,tuning_seconds=60,eager", ["tvm:trials=64,tuning_seconds=60.0", "eager"]),
        ("torch-compile,torch-compile:freezing=TRUE", ["torch-compile", "torch-compile:freezing=true"]),
        ("tvm: trials = 64", ["tvm:trials=64"]),
        ("tvm,trials=64", ["tvm:trials=64"]),
        ("eager:threads=null", ["eager:threads=null"]),
        ("onnxruntime@1.24.4, onnxruntime@1.31", ["onnxruntime@1.24.4", "onnxruntime@1.31"]),
        ("tvm@0.25.0:trials=64,tuning_seconds=2,tvm", ["tvm@0.25.0:trials=64,tuning_seconds=2.0", "tvm"]),
        ("onnxruntime@v1.24.4,onnxruntime@1.24.4", ["onnxruntime@1.24.4", "onnxruntime@1.24.4#2"]),
    ],
)
def test_grammar(text: str, expected: list[str]) -> None:
    assert ids(text) == expected


def test_several_flags_are_one_list_but_options_do_not_cross() -> None:
    assert ids("eager", "tvm:trials=1,tuning_seconds=2") == ["eager", "tvm:trials=1,tuning_seconds=2.0"]


def test_all_brings_in_every_backend_without_asking_by_name() -> None:
    variants = parse_variants(["all"])
    assert [variant.id for variant in variants] == registry.backend_names()
    assert not any(variant.asked_by_name for variant in variants)
    both = parse_variants(["all", "eager"])
    assert [(v.id, v.asked_by_name) for v in both if v.backend == "eager"] == [("eager", False), ("eager#2", True)]


def test_same_item_twice_is_measured_twice() -> None:
    assert ids("eager,eager,eager") == ["eager", "eager#2", "eager#3"]
    assert ids("tvm:tuning_seconds=6,tvm:tuning_seconds=6.0") == ["tvm:tuning_seconds=6.0", "tvm:tuning_seconds=6.0#2"]
    slugs = {variant.slug for variant in parse_variants(["eager,eager,eager"])}
    assert len(slugs) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no backend was asked for"),
        (",", "no backend was asked for"),
        ("eagr", "unknown backend 'eagr'; did you mean 'eager'"),
        ("tvm:trails=64", "unknown option of tvm 'trails'; did you mean 'trials'"),
        ("tvm:tuning-seconds=64", "did you mean 'tuning_seconds'"),
        ("tvm:trials=many", "options of tvm: trials=many: Expected `int`"),
        ("tvm:trials=-1", "options of tvm: trials=-1: Expected `int` >= "),
        ("eager:threads=0", "options of eager: threads=0: "),
        ("torch-compile:mode=fastest", "unknown value of torch-compile:mode 'fastest'. Known: default, max-autotune, "),
        ("torch-compile:mode=max-autotuned", "'max-autotuned'; did you mean 'max-autotune'? Known: default, "),
        ("onnxruntime:level=foo", "unknown value of onnxruntime:level 'foo'. Known: all, basic, disable, extended"),
        (
            "onnxruntime:provider=cda",
            "unknown value of onnxruntime:provider 'cda'; did you mean 'cuda'? Known: cpu, cuda, ",
        ),
        ("eager:precision=fp17", "unknown value of eager:precision 'fp17'; did you mean 'fp16'? Known: bf16, fp16, "),
        ("eager:nonsense=1", "unknown option of eager 'nonsense'. Known: channels_last, cuda_graph, "),
        ("torch-compile:freezing=maybe", "unknown value of torch-compile:freezing 'maybe'. Known: false, true"),
        ("tvm:tuning_seconds=inf", "options of tvm: tuning_seconds=inf: "),
        ("tvm:tuning_seconds=nan", "options of tvm: tuning_seconds=nan: "),
        ("tvm:trials=1,trials=2", "option 'trials' of tvm is given twice"),
        ("tvm:", "'tvm:' is not an option; write tvm:key=value"),
        ("tvm:trials", "'tvm:trials' is not an option; write tvm:key=value"),
        ("tvm:trials=", "'tvm:trials=' is not an option; write tvm:key=value"),
        ("tvm:=64", "'tvm:=64' is not an option; write tvm:key=value"),
        ("trials=64", "option 'trials=64' belongs to no backend"),
        ("all,threads=2", "option 'threads=2' belongs to no backend"),
        ("all:threads=2", "'all:threads=2': 'all' takes no options"),
        ("eager#2", "unknown backend 'eager#2'; did you mean 'eager'"),
        ("onnxruntime@", "'onnxruntime@': '' is not a version"),
        ("onnxruntime@newest", "'onnxruntime@newest': 'newest' is not a version"),
        ("ort@1.24.4", "unknown backend 'ort'"),
        ("tensorrt@11.0", "'tensorrt@11.0': tensorrt is no package of releases that could be chosen"),
        ("all@1.0", "unknown backend 'all'"),
    ],
)
def test_refuses_and_says_why(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_variants([text])
    assert message in caught.value.message


def test_a_version_stays_with_a_case_in_every_precision_and_as_a_baseline() -> None:
    variants = with_precisions(parse_variants(["onnxruntime@1.24.4,onnxruntime@1.31.1,onnxruntime"]), ["fp32", "int8"])
    assert [(one.id, one.release) for one in variants] == [
        ("onnxruntime@1.24.4", "1.24.4"),
        ("onnxruntime@1.24.4:precision=int8", "1.24.4"),
        ("onnxruntime@1.31.1", "1.31.1"),
        ("onnxruntime@1.31.1:precision=int8", "1.31.1"),
        ("onnxruntime", None),
        ("onnxruntime:precision=int8", None),
    ]
    assert find_baseline(variants, "onnxruntime@1.31.1") == "onnxruntime@1.31.1"
    assert find_baseline(variants[2:], "onnxruntime@1.31.1:precision=int8") == "onnxruntime@1.31.1:precision=int8"
    with pytest.raises(UsageError, match=r"baseline 'onnxruntime@1\.30\.0' is not among the cases"):
        find_baseline(variants, "onnxruntime@1.30.0")
    assert len({one.slug for one in variants}) == len(variants)


def test_backend_refuses_options_that_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[BackendOptions] = []

    def check(options: BackendOptions) -> None:
        seen.append(options)
        raise UsageError("threads and freezing contradict each other")

    monkeypatch.setattr(registry.backend("eager"), "check", check)
    with pytest.raises(UsageError, match="contradict"):
        parse_variants(["eager:threads=2"])
    assert [options.threads for options in seen] == [2], "it is asked with parsed options, before anything starts"


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Draw values of an option's type; None stands for leaving the option out."""
    low: Any = None
    high: Any = None
    if typing.get_origin(kind) is Annotated:
        kind, *metas = typing.get_args(kind)
        for meta in metas:
            if isinstance(meta, msgspec.Meta):
                low = meta.ge if meta.ge is not None else meta.gt
                high = meta.le if meta.le is not None else meta.lt
    if typing.get_origin(kind) is Literal:
        return st.sampled_from(typing.get_args(kind))
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(low if low is not None else -1000, high if high is not None else 10**6)
    if kind is float:
        floats = st.floats(low if low is not None else -1e9, high or 1e9, allow_nan=False, allow_infinity=False)
        return floats.filter(lambda value: value != low)
    if kind is type(None):
        return st.none()
    if kind is str:
        return st.from_regex(r"[a-z0-9][a-z0-9_.:-]{0,20}", fullmatch=True)
    return st.one_of([values_of(each) for each in typing.get_args(kind)])


@st.composite
def items(draw: st.DrawFn) -> str:
    """Draw a backend with some of its options, as a user would type it."""
    name = draw(st.sampled_from(sorted(OPTIONS)))
    hints = typing.get_type_hints(OPTIONS[name], include_extras=True)
    keys = draw(st.lists(st.sampled_from(OPTIONS[name].__struct_fields__), unique=True))
    chosen = {key: draw(values_of(hints[key])) for key in keys}
    words = [f"{key}={'null' if value is None else value}" for key, value in chosen.items()]
    return name + (":" if words else "") + ",".join(words)


def parsed_or_refused(text: str) -> list[Variant] | None:
    # Options drawn at random may conflict, or be a word that the backend refuses: that is not what is tested here.
    try:
        return parse_variants([text])
    except UsageError as exc:
        assert exc.message
        return None


@given(items())
def test_id_of_a_variant_parses_to_the_same_variant(text: str) -> None:
    variants = parsed_or_refused(text)
    if variants is not None:
        assert parse_variants([variants[0].id]) == variants
        assert parse_variants([variants[0].id])[0].parsed() == variants[0].parsed()


@given(st.lists(items(), min_size=1, max_size=4))
def test_list_of_ids_parses_to_the_same_list(texts: list[str]) -> None:
    if any(parsed_or_refused(text) is None for text in texts):
        return
    variants = parse_variants(texts)
    assert len({variant.id for variant in variants}) == len(variants) == len(texts)
    again = parse_variants([variant.id.partition("#")[0] for variant in variants])
    assert again == variants


@given(st.text(max_size=40))
def test_any_text_is_understood_or_refused(text: str) -> None:
    variants = parsed_or_refused(text)
    assert variants is None or all(variant.backend in registry.backend_names() for variant in variants)


def variant(id_: str, **options: Any) -> Variant:
    return Variant(id=id_, backend=id_.partition(":")[0], options=options, asked_by_name=True)


@pytest.mark.parametrize("id_", ["eager", "tvm:trials=64", "x:a=1.5,b=true", "eager#2"])
def test_slug_of_a_plain_id_can_be_read(id_: str) -> None:
    slug = variant(id_).slug
    assert slug == id_.replace(":", "-").replace("=", "-").replace(",", "-").replace("#", "-")


def test_slugs_fit_a_file_name_and_do_not_meet() -> None:
    long = [variant("x:target=" + "a" * 300 + end) for end in ("b", "c")]
    assert all(len(each.slug) < SLUG_CHARACTERS + 10 for each in long)
    odd = [variant(f"x:target=a{mark}b") for mark in (" ", "/", "+", "  ", "\n")]
    assert len({each.slug for each in [*long, *odd]}) == 7
    assert all("/" not in each.slug and " " not in each.slug and "\n" not in each.slug for each in odd)


def test_baseline_is_the_registrys_own_else_the_first() -> None:
    assert find_baseline(parse_variants(["onnxruntime,eager"]), None) == "eager"
    assert find_baseline(parse_variants(["onnxruntime,tvm"]), None) == "onnxruntime"
    assert find_baseline(parse_variants(["onnxruntime,eager:threads=1"]), None) == "onnxruntime"


@pytest.mark.parametrize(
    ("cases", "wanted", "found"),
    [
        ("eager,tvm:trials=64", "tvm", "tvm:trials=64"),
        ("tvm:trials=64,tvm", "tvm", "tvm"),
        ("eager,tvm:tuning_seconds=60", "tvm:tuning_seconds=60", "tvm:tuning_seconds=60.0"),
        ("eager,torch-compile:freezing=true", "torch-compile:freezing=True", "torch-compile:freezing=true"),
        ("eager,eager", "eager#2", "eager#2"),
    ],
)
def test_baseline_is_found_in_any_spelling(cases: str, wanted: str, found: str) -> None:
    assert find_baseline(parse_variants([cases]), wanted) == found


@pytest.mark.parametrize("wanted", ["tvm", "tvm:trials=64", "eager#2", "nothing", ""])
def test_baseline_must_be_among_the_cases(wanted: str) -> None:
    with pytest.raises(UsageError, match=f"baseline '{wanted}' is not among the cases") as caught:
        find_baseline(parse_variants(["eager,onnxruntime"]), wanted)
    assert caught.value.hint == "it must be one of: eager, onnxruntime"
