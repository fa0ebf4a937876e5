import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from posttrain.chain import MODELS
from posttrain.evals import page
from posttrain.evals.across import compare_models
from posttrain.evals.figures import inline_svg
from posttrain.evals.inputs import load_inputs
from posttrain.evals.panels import DISTILLATION, LEARNED_RL, REWARD_MODEL
from posttrain.evals.rl_view import rl_view
from posttrain.records import DataError
from tests.evals import made_up

VOID = {"meta", "br", "hr", "img", "link", "input"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    made_up.write_run(root, questions=40)
    return root


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return build(run, prompts=12)


def build(root: Path, *, prompts: int = 2) -> str:
    inputs = load_inputs(root)
    return page.build_page(inputs, compare_models(inputs.rows, draws=100, bins=10, seed=1), prompts=prompts)


class Reader(HTMLParser):
    """Text of the page, and whether every element that opens is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    return reader


def test_well_formed_and_self_contained(html: str) -> None:
    reader = read(html)
    assert not reader.open
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(reader.tags)
    assert reader.links
    assert all(link.startswith("#") for link in reader.links)
    assert "@import" not in html
    assert not re.findall(r"url\((?!#)", html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_same_inputs_same_bytes(run: Path, html: str) -> None:
    assert build(run, prompts=12) == html
    assert not re.search(r"20[2-9]\d-\d\d-\d\d", html)
    assert str(run) not in html


def test_numbers_are_those_of_the_files(run: Path, html: str) -> None:
    text = read(html).text
    for model in MODELS:
        values = json.loads((run / f"reports/evaluate/{model}.json").read_text())
        assert f"{100 * values['think']['avg']['value']:.1f} %" in text
        assert f"{100 * values['no_think']['avg']['value']:.1f} %" in text
        assert f"{values['think']['tokens_mean']:.1f}" in text
    assert "\N{MINUS SIGN}28.5 % tokens" in text  # 40.9 / 57.2 - 1
    assert "6200 \N{RIGHTWARDS ARROW} 5714" in text
    assert "87.4 %" in text


def test_every_question_with_every_model(html: str) -> None:
    assert html.count('<details class="question"') == 12
    assert html.count("<article>") == 12 * len(MODELS)


def test_what_models_and_rows_say_is_escaped(html: str) -> None:
    assert "True or False? &lt;b&gt;" in html
    assert "the answer &amp; the &lt;end" in html
    assert "<end" not in html


def copy(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "run"))


@pytest.mark.parametrize(
    "name",
    ["reports/grpo.json", "reports/evaluate/fuse.json", "reports/curves/sft.csv", "data/evaluations/align.jsonl"],
)
def test_a_missing_file_is_named(run: Path, tmp_path: Path, name: str) -> None:
    root = copy(run, tmp_path)
    (root / name).unlink()
    with pytest.raises(DataError, match=re.escape(name)):
        load_inputs(root)


def test_a_missing_key_names_its_file(run: Path, tmp_path: Path) -> None:
    root = copy(run, tmp_path)
    (root / "reports/align.json").write_text("{}")
    with pytest.raises(DataError, match=r"^reports/align.json: key 'win_rate': missing"):
        build(root)


def test_a_missing_column_names_its_file(run: Path, tmp_path: Path) -> None:
    root = copy(run, tmp_path)
    (root / "reports/curves/base.csv").write_text("step,loss\n1,0.5\n")
    with pytest.raises(DataError, match=r"^reports/curves/base.csv: column 'train/loss': missing"):
        build(root)


def test_a_cell_that_is_no_number_is_named(run: Path, tmp_path: Path) -> None:
    root = copy(run, tmp_path)
    (root / "reports/curves/sft.csv").write_text("step,train/loss\n1,0.5\n2,none\n")
    with pytest.raises(DataError, match=r"sft.csv:3: column 'train/loss': got 'none'"):
        load_inputs(root)


def test_a_run_of_rejection_sampling_shows_what_it_kept_in_the_place_of_rl(run: Path, tmp_path: Path) -> None:
    root = copy(run, tmp_path)
    kept = {"prompts": 500, "sampled": 12500, "right": 4800, "distinct": 2100, "kept": 1234, "prompts_with_kept": 431}
    looks = {"0": {"accuracy": 0.4, "tokens": 60.0, "tokens_correct": 55.0}}
    (root / "reports/grpo.json").write_text(json.dumps(kept | {"heldout": looks}))
    (root / "reports/curves/grpo.csv").write_text("step,train/loss\n1,0.5\n2,0.4\n")
    shown = read(build(root)).text
    assert "1234 answers" in shown
    assert "right and distinct, of 12500 sampled; on 431 prompts" in shown
    for word in ("Length reward", "Length against accuracy", "RL: rewards", "Reinforcement learning"):
        assert word not in shown


def test_rl_without_a_length_term_shows_no_length_reward(run: Path, tmp_path: Path) -> None:
    root = copy(run, tmp_path)
    values = json.loads((root / "reports/grpo.json").read_text())
    del values["end"]["reward/length_weight"], values["end"]["reward/language_consistency_weight"]
    (root / "reports/grpo.json").write_text(json.dumps(values | {"length_reward_start": None}))
    curve = (root / "reports/curves/grpo.csv").read_text()
    (root / "reports/curves/grpo.csv").write_text(curve.replace("reward/language_consistency", "other"))
    shown = read(build(root)).text
    # From the first look to the last: 56.4 to 40.9 tokens, 45.1 % to 85.1 %.
    assert "\N{MINUS SIGN}27.5 % tokens" in shown and "from 56.4 to 40.9; accuracy +40.0 points" in shown
    assert "Length without a reward for it" in shown and "Length against accuracy" in shown and "RL: rewards" in shown
    for word in ("Length reward", "length reward"):
        assert word not in shown


def test_rl_without_a_reward_for_accuracy_still_has_a_page(run: Path, tmp_path: Path) -> None:
    root = copy(run, tmp_path)
    values = json.loads((root / "reports/grpo.json").read_text())
    (root / "reports/grpo.json").write_text(json.dumps(values | {"end": {"reward/learned_weight": 1.0}}))
    curve = (root / "reports/curves/grpo.csv").read_text()
    (root / "reports/curves/grpo.csv").write_text(curve.replace("reward/", "other/"))
    shown = read(build(root)).text
    assert "Length against accuracy" in shown and "RL: entropy of the policy" in shown and "RL: rewards" not in shown


def test_with_keep_best_the_look_kept_is_the_one_compared(run: Path, tmp_path: Path) -> None:
    root = copy(run, tmp_path)
    values = json.loads((root / "reports/grpo.json").read_text())
    kept = {"step": 36, "accuracy": 0.842, "accuracy_last": 0.851}
    (root / "reports/grpo.json").write_text(json.dumps(values | {"length_reward_start": None, "kept_weights": kept}))
    view = rl_view(load_inputs(root))
    assert view.making == "RL on verifiable rewards, weights of step 36"
    # From the first look to that of step 36: 56.4 to 57.2 tokens, 45.1 % to 84.2 %.
    assert view.tile[1:] == ("+1.4 % tokens", "of right answers, from 56.4 to 57.2; accuracy +39.1 points")


def test_any_two_models_are_on_the_page(html: str) -> None:
    text = read(html).text
    inputs = text[text.index("Who beats whom") : text.index("What curation dropped")]
    for model in MODELS:
        assert inputs.count(model) >= 3  # row, column, diagram
    assert inputs.count("ECE") == len(MODELS)
    assert len(re.findall(r"\d\N{EN DASH}\d", inputs)) >= len(MODELS) * (len(MODELS) - 1)


def test_length_reward_needs_a_look_at_its_start(run: Path, tmp_path: Path) -> None:
    root = copy(run, tmp_path)
    values = json.loads((root / "reports/grpo.json").read_text())
    (root / "reports/grpo.json").write_text(json.dumps(values | {"length_reward_start": 30}))
    with pytest.raises(DataError, match=r"wanted one at length_reward_start = 30"):
        build(root)


LOOKS = {
    "0": {"gold": 4.5, "gold_error": 0.1, "proxy": -0.2, "proxy_error": 0.05, "kl": 0.0},
    "2": {"gold": 4.75, "gold_error": 0.2, "proxy": 0.4, "proxy_error": 0.05, "kl": 4.0},
    "10": {"gold": 4.25, "gold_error": 0.2, "proxy": 1.1, "proxy_error": 0.05, "kl": 9.0},
}
SENTENCE = "gold peaked after step 2 at KL 4.00 nats (sqrt 2.00)."


def by_learned_rl(run: Path, folder: Path, looks: dict[str, dict[str, float]] = LOOKS) -> Path:
    """The same run, but that stage align trained on the reward model's score."""
    root = copy(run, folder)
    report = json.loads((root / "reports/align.json").read_text())
    rl = {"kept_step": 2, "sentence": SENTENCE, "heldout": looks}
    (root / "reports/align.json").write_text(json.dumps(report | {"method": "ppo", "rl": rl}))
    (root / "reports/curves/align.csv").write_text("eval/gold,reward/learned,step\n4.5,,0\n,0.1,1\n4.75,0.4,2\n")
    return root


def test_rl_on_a_reward_model_is_shown_in_the_place_of_pairs(run: Path, html: str, tmp_path: Path) -> None:
    root = by_learned_rl(run, tmp_path)
    before, shown = read(html).text, read(build(root)).text
    inputs = load_inputs(root)
    order = page.panels(inputs, rl_view(inputs))
    assert order[-4:] == [REWARD_MODEL, *LEARNED_RL, DISTILLATION]
    assert all(panel.title in shown and panel.title not in before for panel in LEARNED_RL)
    assert page.LEARNED_RL_MAKING in shown and page.LEARNED_RL_MAKING not in before
    assert SENTENCE in shown and "Proxy and gold" in shown and "Proxy and gold" not in before
    drawn = [inline_svg(page.align_curve(inputs), "curve", description="d") for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_proxy_and_gold_stand_at_the_square_root_of_their_kl(run: Path, tmp_path: Path) -> None:
    proxy, gold = page.align_curve(load_inputs(by_learned_rl(run, tmp_path))).axes
    for axes, values in ((proxy, [-0.2, 0.4, 1.1]), (gold, [4.5, 4.75, 4.25])):
        line, kept = axes.lines[0], axes.lines[-1]
        assert list(line.get_xdata()) == [0.0, 2.0, 3.0] and list(line.get_ydata()) == values
        assert (list(kept.get_xdata()), list(kept.get_ydata())) == ([2.0], [values[1]])
    bars = gold.collections[0].get_segments()  # 1.96 standard errors of 0.2 on each side of 4.75
    assert [round(float(y), 3) for _, y in bars[1]] == [4.358, 5.142]


def test_a_second_reward_model_has_a_panel_of_its_own(run: Path, tmp_path: Path) -> None:
    looks = {step: look | {"second_proxy": 1.0, "second_proxy_error": 0.1} for step, look in LOOKS.items()}
    assert len(page.align_curve(load_inputs(by_learned_rl(run, tmp_path, looks))).axes) == 3


def test_a_look_without_its_error_names_the_key(run: Path, tmp_path: Path) -> None:
    looks = LOOKS | {"2": {"gold": 4.75, "proxy": 0.4, "kl": 4.0}}
    with pytest.raises(DataError, match=r"reports/align.json: key 'rl.heldout.2.proxy_error': missing"):
        page.align_curve(load_inputs(by_learned_rl(run, tmp_path, looks)))
