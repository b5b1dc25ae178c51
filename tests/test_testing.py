"""conforms() on methods that each break one rule, and the toys that it is made of."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import siftune
from siftune import Samples, UserError, models
from siftune.calling import Fault
from siftune.testing import check, conforms, tiny_model, toy_samples

from .distributions import write

Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Install:
    """Install a module whose class `Own` is a method; gives its name, which is another one in every test."""
    slug = "".join(letter if letter.isalnum() else "-" for letter in request.node.name.lower()).strip("-")

    def install(code: str, hook: str = "score", head: str = "") -> str:
        package = f"outside-{slug}"
        monkeypatch.syspath_prepend(write(tmp_path / "site", package, head + code, {f"siftune.{hook}": {slug: "Own"}}))
        return slug

    return install


GOOD = '''
class Own(Method):
    """Marks in the response."""

    mark: Annotated[str, "what is counted"] = "?"
    words: Annotated[str | None, "more of them"] = None
    factor: Annotated[float, "of every count"] = 1.0
    often: Annotated[int | Literal["auto"], "at most"] = "auto"
    twice: Annotated[bool, "count double"] = False

    @hookimpl
    def score(self, samples):
        return [float(sample.response.count(self.mark)) for sample in samples]
'''


EDIT = "samples[0].messages[0]['content'] = 'Edited.'"
NONE = "Outcome([0.0] * len(samples), left_out={i: 'none' for i in range(len(samples))})"


def test_a_good_one_is_told_what_was_checked(install: Install) -> None:
    name = install(GOOD)
    said = conforms("score", name, mark=".")
    assert said[0] == f"score {name} is Own of outside-{name} 0.1"
    assert any("--mark, --words, --factor, --often, --twice" in one for one in said)
    assert any("nothing heavy" in one for one in said)
    assert f"it gave {name} for 3 samples" in said
    assert said[-1].startswith("two runs agree")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('    """Marks in the response."""\n', "", "Own has no docstring"),
        ('"what is counted"', '""', "--mark says nothing of itself"),
        ('Annotated[str, "what is counted"]', "str", "--mark says nothing of itself"),
        ("Annotated[float,", "Annotated[complex,", "types of its options cannot be read.*complex"),
        ("Annotated[float,", 'Annotated["Absent",', "types of its options cannot be read.*Absent"),
        ('] = "auto"', '] = "some"', "--often is no value.*'some' is not auto or an integer"),
        ("    factor:", '    shard: Annotated[int, "x"] = 5\n    factor:', "shard cannot be an option"),
        ("[float(", "[np.random.default_rng().random() + float(", "gave two answers to the same question"),
        ("class Own", "import faiss\n\nclass Own", "importing outside_.* imports faiss; import it inside"),
        ("        return", f"        {EDIT}\n        return", "changed the samples or the columns"),
        ("[float(sample.response.count(self.mark)) for sample in samples]", NONE, "gave no value for any"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_a_sentence(install: Install, old: str, new: str, said: str) -> None:
    assert old in GOOD
    name = install(GOOD.replace(old, new, 1))
    with pytest.raises(AssertionError, match=said) as caught:
        conforms("score", name)
    assert f"score {name}" in str(caught.value) or f"outside-{name}" in str(caught.value)


def test_the_shape_is_checked_by_the_engine(install: Install) -> None:
    name = install(GOOD.replace("for sample in samples]", "for sample in samples][1:]"))
    with pytest.raises(Fault, match=r"score .* returned 2 values .* for 3; a row without one is named in an Outcome"):
        conforms("score", name)


def test_one_that_changes_a_column(install: Install) -> None:
    code = GOOD.replace("    @hookimpl", '    def needs(self):\n        return ["own.losses"]\n\n    @hookimpl')
    name = install(
        code.replace("        return [float", '        samples.column("own.losses")[0][:] = 0\n        return [float')
    )
    with pytest.raises(AssertionError, match="changed the samples or the columns"):
        conforms("score", name)


def test_one_that_does_not_travel(install: Install) -> None:
    code = GOOD.replace('= "?"', "= None").replace("Annotated[str,", "Annotated[Any,")
    name = install(
        code.replace("    @hookimpl", "    def __post_init__(self):\n        self.mark = lambda: 1\n\n    @hookimpl")
    )
    with pytest.raises(AssertionError):
        conforms("score", name)


def test_one_that_is_not_installed() -> None:
    with pytest.raises(AssertionError, match=r"no score method 'lenght'\. Did you mean 'length'"):
        conforms("score", "lenght")


def test_a_required_option_is_asked_for(install: Install) -> None:
    name = install(GOOD.replace(' = "?"', ""))
    with pytest.raises(AssertionError, match=r"needs --mark: what is counted \(name it for the check too\)"):
        conforms("score", name)
    assert conforms("score", name, mark="!")


def test_columns_are_made_up_for_what_it_needs(install: Install) -> None:
    code = '''
class Own(Method):
    """Adds up what it needs."""

    def needs(self):
        return ["embedding", "cluster", "ifd", "ifd.token_losses", "input.quality", "input.vector", "weight?"]

    @hookimpl
    def score(self, samples):
        embedding, cluster, ifd, losses, quality, vector = map(samples.column, self.needs()[:-1])
        assert embedding.shape == (3, 4) and len(losses[0]) == 12 and len(vector[0]) == 4
        assert set(cluster) == {0, 1} and (ifd < 1).all()
        return embedding.sum(axis=1) + cluster + ifd + quality + [one.sum() for one in losses]
'''
    name = install(code)
    assert "two runs agree, and what it was handed is as it was" in conforms("score", name)


def test_a_view_of_ones_own(install: Install) -> None:
    code = '''
class Own(Method):
    """The best by a column that only its author knows."""

    def needs(self):
        return ["special"]

    @hookimpl
    def select(self, samples):
        assert len(samples) == 4
        return np.argsort([len(text) for text in samples.column("special")], kind="stable")
'''
    name = install(code, "select")
    rows = [siftune.Sample.of(f"question {i}", "answer") for i in range(4)]
    told = conforms("select", name, on=Samples.of(rows, special=["ccc", "a", "dddd", "bb"]))
    assert "it kept 2 of 4 samples with a budget of 2" in told


MODEL = '''
class Own(Method):
    """The loss of a sentence."""

    model: Annotated[str | None, "causal LM"] = None

    @hookimpl
    def evaluate(self):
        from siftune import models
        reader = models.reader(self.model)
        return Evaluation({"weights": reader.model.num_parameters()}, [])
'''
TEACHER = '''
class Own(Method):
    """A better version."""

    requires = ("teacher",)
    teacher: Annotated[str | None, "address"] = None

    @hookimpl
    def reflect(self, samples):
        for sample in samples:
            yield sample.rewrite(response=sample.response + self.teacher)
'''


def test_a_reader_is_given_a_tiny_model(install: Install) -> None:
    assert "it measured weights" in conforms("evaluate", install(MODEL, "evaluate"))


def test_without_a_teacher_it_is_skipped_with_the_reason(install: Install) -> None:
    name = install(TEACHER, "reflect")
    with pytest.raises(unittest.SkipTest, match="needs a teacher; name one: --teacher"):
        conforms("reflect", name)
    assert "it wrote 3 new samples" in conforms("reflect", name, teacher="http://localhost:9/v1")


def test_another_kind_of_model_is_not_made_up(install: Install) -> None:
    code = MODEL.replace('"""The loss', '"""Of a').replace(
        "    model:", '    reads = "ranker"\n    requires = ("model",)\n    model:'
    )
    name = install(code, "evaluate")
    with pytest.raises(unittest.SkipTest, match="needs a ranker; name one: --model"):
        conforms("evaluate", name)


# ---- the command line's check ----


def test_check_takes_the_methods_options(install: Install) -> None:
    name = install(GOOD)
    said = list(check(name, ["--mark", ".", "--twice", "--often", "3"]))
    assert all(one.startswith("ok: ") for one in said) and len(said) == 7
    assert list(check(f"score/{name}"))[-1].startswith("ok: two runs agree")
    with pytest.raises(UserError, match=r"has no option '--marks'\. Did you mean '--mark'"):
        list(check(name, ["--marks", "."]))


def test_check_says_which_rule_is_broken(install: Install) -> None:
    name = install(GOOD.replace("[float(", "[np.random.default_rng().random() + float("))
    with pytest.raises(UserError, match="gave two answers"):
        list(check(name))


def test_check_says_why_it_did_not_run(install: Install) -> None:
    assert list(check(install(TEACHER, "reflect")))[-1].startswith("not run: reflect ")


def test_check_explains_names() -> None:
    for name, said in (
        ("lenght", "no installed method 'lenght'. Did you mean 'length'"),
        ("scre/length", "no hook 'scre'. Did you mean 'score'"),
    ):
        with pytest.raises(UserError, match=said):
            list(check(name))
    with pytest.raises(AssertionError, match="method of score, not of select"):
        conforms("select", "length")


# ---- toys ----


def test_toy_samples_are_of_every_kind() -> None:
    plain, talk, sort = toy_samples()
    assert plain.turns == 1 and talk.turns == 2 and talk.system and not sort.response.startswith("3")
    assert (sort.instruction, sort.input) == ("Sort these numbers.", "3, 1, 2")
    assert [one.id for one in toy_samples()] == [plain.id, talk.id, sort.id]
    plain.messages[0]["content"] = "edited"  # type: ignore[index]
    assert toy_samples()[0].prompt == "Name a colour of the sky."


def test_the_tiny_model_is_real_and_always_the_same(tmp_path: Path) -> None:
    from siftune import prompts

    one, two = tiny_model(tmp_path / "one"), tiny_model(tmp_path / "two")
    assert models.digest(str(one)) == models.digest(str(two))
    assert {path.suffix for path in one.iterdir()} == {".json", ".safetensors"}
    reader = models.reader(str(one))
    template = prompts.template("auto", reader.tokenizer)
    assert template.name == "alpaca"
    encoded = reader.encode([template.pair(sample) for sample in toy_samples()], template.special)
    losses = reader.token_losses(encoded)
    assert [len(one) for one in losses] == [len(one) for one in encoded] and all(
        np.isfinite(one).all() for one in losses
    )
    assert reader.context == 2048 and encoded[0].head == 1
    text = "Ünïcödé, the end\n\nand  blanks 🌉"
    assert reader.tokenizer.decode(reader.tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_the_tiny_model_takes_a_chat_template(tmp_path: Path) -> None:
    from siftune import prompts

    chat = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    folder = tiny_model(tmp_path / "chat", chat)
    template = prompts.template("auto", models.tokenizer(str(folder)))
    assert template.name == "chat"
    pair = template.pair(toy_samples()[0])
    assert pair.text.startswith("<user>Name a colour of the sky.<assistant>Blue.")
