"""The study of reward models: strict numbers, nested shares, a toy matrix, and a page that says what it says."""

import dataclasses
import json
import math
import statistics

import pytest

from posttrain.config import ConfigError
from posttrain.engine.policy import Policy, build_micro, save_policy
from posttrain.evals.intervals import resample
from posttrain.evals.pair_quality import Compared
from posttrain.evals.readme import block_of
from posttrain.files import rounded
from posttrain.loops.pair_inputs import pair_ids
from posttrain.records import DataError
from studies.reward_models.matrix import Bench, Cell, outcome, part, run
from studies.reward_models.page import NOTHING, PAGE, REPORT, block
from studies.reward_models.plan import STUDY, load_study
from tests.loops.test_preference import pairs
from tests.loops.toy import ENGINE, MICRO, optimizer, start_policy


def with_ids(pair):
    (prompt, chosen), (_, rejected) = pair_ids(start_policy().tokenizer, pair)
    return dataclasses.replace(pair, prompt_ids=prompt, chosen_ids=chosen, rejected_ids=rejected)


TRAIN = [with_ids(pair) for pair in pairs() if pair.split == "train"]
HELDOUT = [with_ids(dataclasses.replace(pairs()[-1], id=f"h{i}", problem_id=f"h{i}")) for i in range(2)]


def save_small(folder, tokenizer):
    small = MICRO.model_copy(update={"hidden_size": 16, "intermediate_size": 32, "layers": 1})
    model = build_micro(small, vocab_size=len(tokenizer), eos_id=2, pad_id=0, seed=0)
    save_policy(Policy(model, tokenizer), folder)


def bench(folder, **changes):
    study = load_study()
    training = study.training.model_copy(update={"epochs": 8.0, "batch_pairs": 4, "optimizer": optimizer(0.003)})
    numbers = {
        "bodies": {"small": str(folder / "small"), "large": str(folder / "large")},
        "shares": (0.34, 1.0), "seeds": 2, "training": training, "bootstrap": 50,
    }  # fmt: skip
    return Bench(study.model_copy(update=numbers | changes), ENGINE, TRAIN, HELDOUT, folder / "work", lambda text: None)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    save_policy(start_policy(), folder / "large")
    save_small(folder / "small", start_policy().tokenizer)
    return rounded(run(bench(folder)))


def test_every_body_meets_every_share(report):
    cells = report["cells"]
    assert [(cell["body"], cell["share"]) for cell in cells] == [
        ("small", 0.34), ("small", 1.0), ("large", 0.34), ("large", 1.0)
    ]  # fmt: skip
    assert [cell["pairs"] for cell in cells] == [3, 9, 3, 9]  # three copies of one, and of three, prompts
    assert cells[0]["parameters"] < cells[2]["parameters"]
    assert (report["heldout_pairs"], report["heldout_prompts"], report["seeds"]) == (2, 2, 2)
    for cell in cells:
        assert len(cell["per_seed"]) == 2 and cell["accuracy"]["value"] == pytest.approx(sum(cell["per_seed"]) / 2)
        assert cell["accuracy"]["low"] <= cell["accuracy"]["value"] <= cell["accuracy"]["high"]
    # The toy policy knows both answers; which of them is wanted is learnt in a few steps.
    assert cells[3]["accuracy"]["value"] == 1.0 and cells[3]["log_loss"] < math.log(2)


def test_differences_are_those_of_the_cells(report):
    by = {(cell["body"], cell["share"]): cell["accuracy"]["value"] for cell in report["cells"]}
    for cell in report["cells"]:
        own = cell["accuracy"]["value"]
        assert cell["over_fewest_pairs"]["value"] == pytest.approx(own - by[cell["body"], 0.34])
        assert cell["over_first_body"]["value"] == pytest.approx(own - by["small", cell["share"]])


def test_a_cell_by_hand():
    """Prompt a has two pairs, b one; the seeds order 2 and 1 of three as labelled, those of the other cell 1 and 1."""

    def found(*margins, judge=(1.0, 1.0, -1.0)):
        return [Compared(p, m, j, 0.0) for p, m, j in zip("aab", margins, judge, strict=True)]

    own = Cell("large", 1.0, 9, 4, [found(1.0, -1.0, 2.0), found(1.0, -1.0, -2.0)])
    other = Cell("large", 0.5, 9, 2, [found(-1.0, 1.0, 0.0), found(1.0, 0.0, -1.0)])
    values = outcome(own, other, other, ["a", "b"], resample(2, draws=200, seed=0))
    assert values["accuracy"]["value"] == 0.5
    assert (values["accuracy"]["low"], values["accuracy"]["high"]) == (0.5, 0.5)  # one half on either prompt
    assert values["per_seed"] == pytest.approx([2 / 3, 1 / 3])
    assert values["seed_se"] == pytest.approx(statistics.stdev([2 / 3, 1 / 3]) / math.sqrt(2))
    assert values["over_fewest_pairs"]["value"] == pytest.approx(3 / 6 - 2 / 6)
    # The flipped label of b: the second seed agrees with the judge, the first does not.
    assert values["accuracy_to_judge"]["value"] == pytest.approx(3 / 6)
    assert values["ties"] == 0.0
    losses = [math.log1p(math.exp(-m)) for m in (1.0, -1.0, 2.0, 1.0, -1.0, -2.0)]
    assert values["log_loss"] == pytest.approx(sum(losses) / 6)


def test_shares_are_nested_and_of_whole_prompts():
    many = [dataclasses.replace(TRAIN[0], id=f"{i}-{k}", problem_id=f"q{i}") for i in range(20) for k in range(2)]
    quarter, half, whole = ({pair.id for pair in part(many, share, seed=3)} for share in (0.25, 0.5, 1.0))
    assert (len(quarter), len(half), len(whole)) == (10, 20, 40)
    assert quarter < half < whole
    assert {name.replace("-0", "-1") for name in quarter if name.endswith("-0")} <= quarter
    assert quarter != {pair.id for pair in part(many, 0.25, seed=4)}


def test_bodies_of_another_vocabulary_and_no_heldout_pairs_are_refused(tmp_path):
    tokenizer = start_policy().tokenizer
    save_small(tmp_path / "small", tokenizer)
    toy = bench(tmp_path)
    with pytest.raises(DataError, match="got no pair in split 'heldout'"):
        run(dataclasses.replace(toy, heldout=[]))
    shifted = dataclasses.replace(HELDOUT[0], chosen_ids=tuple(i + 1 for i in HELDOUT[0].chosen_ids))
    with pytest.raises(DataError, match="small: its tokenizer reads pair 'h0' as another text"):
        run(dataclasses.replace(toy, heldout=[shifted]))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("shares: [0.25, 0.5, 1.0]", "shares: [0.5, 0.25]", r"shares: got \[0.5, 0.25\], wanted ascending ones"),
        ("shares: [0.25, 0.5, 1.0]", "shares: [0.0, 1.0]", "shares.0: got 0.0; wanted: greater than 0"),
        ("seeds: 3", "seeds: 0", "seeds: got 0; wanted: greater than or equal to 1"),
        ("margin_scale: 0.0", "margin: 0.0", "training.margin: got 0.0; wanted: no such key"),
    ],
)
def test_wrong_numbers_are_named(tmp_path, old, new, said):
    path = tmp_path / "params.yaml"
    text = STUDY.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load_study(path)


def test_the_page_shows_the_report(report):
    text = block(report)
    assert text.count("\n| ") == 5 and "2 held-out pairs of 2 prompts, mean of 2 seeds" in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(("| small", "| large"))]
    assert [row[2] for row in rows] == ["3", "9", "3", "9"]
    assert [row[4] == "-" for row in rows] == [True, False, True, False]
    assert [row[5] == "-" for row in rows] == [True, True, False, False]
    committed = json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.is_file() else None
    assert block_of(PAGE.read_text(encoding="utf-8")) == block(committed)
    assert block(None) == NOTHING
