"""The model in Hugging Face form: what its logits allow, what they depend on, and that it saves and loads."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import sector  # noqa: F401 (registers)
from sector.engine import supervised, tokens
from sector.engine.model import SectorConfig, SectorForCausalLM, new_model
from sector.engine.policy import PlaceLayout
from sector.engine.problem import draw_problems


@pytest.fixture
def model() -> SectorForCausalLM:
    # Larger weights than a fresh model's, so that logits tell tokens apart.
    return new_model("tiny", seed=3, initializer_range=0.3).eval()


def _sequences(draws: torch.Generator, digits: int = 5) -> Tensor:
    """`[6, T]` ids of prompts with their simplifications, a variant for each row."""
    examples = supervised.label(draw_problems(digits, 6, draws))
    layout = PlaceLayout(variant=torch.arange(6) % tokens.NUM_SHIFTS)
    return torch.cat(
        [
            layout.prompt_ids(examples.problems, tokens.THINK),
            layout.simplification_ids(examples.rest, examples.digit),
        ],
        dim=1,
    )


@pytest.mark.parametrize(
    ("preset", "fewest", "most"),
    [pytest.param("tiny", 130_000, 170_000, id="tiny"), pytest.param("base", 13_000_000, 15_000_000, id="base")],
)
def test_preset_sizes(preset: str, fewest: int, most: int) -> None:
    assert fewest < new_model(preset, seed=0).num_parameters() < most


def test_weights_depend_on_the_seed_alone() -> None:
    one = new_model("tiny", seed=1).state_dict()
    torch.rand(7)
    same, other = new_model("tiny", seed=1).state_dict(), new_model("tiny", seed=2).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_making_a_model_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    new_model("tiny", seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_unknown_preset_names_the_known() -> None:
    with pytest.raises(ValueError, match="tiny, base"):
        new_model("huge", seed=0)


@torch.no_grad()
def test_logits_are_finite_exactly_where_the_legal_table_allows(
    model: SectorForCausalLM, draws: torch.Generator
) -> None:
    ids = _sequences(draws)
    logits = model(ids).logits
    assert logits.shape == (*ids.shape, tokens.VOCAB_SIZE)
    allowed = torch.zeros_like(logits, dtype=torch.bool)
    for row, column in torch.cartesian_prod(*map(torch.arange, ids.shape)).tolist():
        classes = tokens.legal_table()[tokens.class_of(ids[row, column])].nonzero().flatten()
        allowed[row, column, tokens.next_ids(ids[row, column], classes)] = True
    assert torch.equal(logits.isfinite(), allowed)
    assert not bool(logits.isnan().any())


@torch.no_grad()
def test_logits_are_the_class_logits_moved_to_ids(model: SectorForCausalLM, draws: torch.Generator) -> None:
    ids = _sequences(draws)
    by_class = model.class_logits(model.hidden_states(ids), ids)
    assert by_class.shape == (*ids.shape, tokens.NUM_CLASSES)
    targets = tokens.next_ids(ids.unsqueeze(-1), torch.arange(tokens.NUM_CLASSES))
    moved = model(ids).logits.gather(-1, targets)
    legal = by_class.isfinite()
    torch.testing.assert_close(moved[legal], by_class[legal], rtol=0, atol=0)


@torch.no_grad()
def test_later_tokens_and_other_rows_do_not_matter(model: SectorForCausalLM, draws: torch.Generator) -> None:
    ids = _sequences(draws)
    changed = ids.clone()
    changed[:, 9:] = ids.roll(1, 0)[:, 9:]
    changed[0] = ids[1]
    before, after = model.hidden_states(ids), model.hidden_states(changed)
    torch.testing.assert_close(after[1:, :9], before[1:, :9])
    assert not torch.allclose(after[1:, 9:], before[1:, 9:])


@torch.no_grad()
def test_places_not_indices_are_the_positions(model: SectorForCausalLM, draws: torch.Generator) -> None:
    """Marks at place 0 and one common shift of all other places is all that distances can tell."""
    ids = _sequences(draws)
    plain = model.hidden_states(ids)
    assert torch.equal(model.hidden_states(ids, places=tokens.place_of(ids)), plain)
    shifted = model.hidden_states(ids, places=tokens.place_of(ids) + 4)
    torch.testing.assert_close(shifted, plain, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(model.hidden_states(ids, places=torch.arange(ids.shape[1]).expand_as(ids)), plain)


@torch.no_grad()
@pytest.mark.parametrize("split", [1, 7, 16], ids="split{}".format)
def test_cache_changes_nothing(model: SectorForCausalLM, split: int, draws: torch.Generator) -> None:
    ids = _sequences(draws)
    whole = model(ids).logits
    first = model(ids[:, :split], use_cache=True)
    chunk = model(ids[:, split:-1], past_key_values=first.past_key_values, use_cache=True)
    last = model(ids[:, -1:], past_key_values=chunk.past_key_values, use_cache=True)
    joined = torch.cat([first.logits, chunk.logits, last.logits], dim=1)
    torch.testing.assert_close(joined, whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_left_padding_changes_nothing(model: SectorForCausalLM, draws: torch.Generator) -> None:
    ids = _sequences(draws)
    padding = torch.full((len(ids), 4), tokens.PAD_ID)
    mask = torch.cat([torch.zeros_like(padding), torch.ones_like(ids)], dim=1)
    padded = model(torch.cat([padding, ids], dim=1), attention_mask=mask).logits
    torch.testing.assert_close(padded[:, 4:], model(ids).logits, rtol=1e-4, atol=1e-4)
    assert not bool(padded.isnan().any())


@torch.no_grad()
def test_logits_to_keep(model: SectorForCausalLM, draws: torch.Generator) -> None:
    ids = _sequences(draws)
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, model(ids).logits[:, -2:], rtol=1e-4, atol=1e-4)


def test_loss_is_the_mean_over_labelled_tokens(model: SectorForCausalLM, draws: torch.Generator) -> None:
    ids = _sequences(draws)
    prompt = 2 * 5 + 6
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < prompt, -100)
    output = model(ids, labels=labels)
    chances = output.logits[:, prompt - 1 : -1].log_softmax(dim=-1).gather(-1, ids[:, prompt:, None])
    torch.testing.assert_close(output.loss, -chances.mean())
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_auto_classes_load_what_was_saved(model: SectorForCausalLM, tmp_path: Path, draws: torch.Generator) -> None:
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, SectorConfig)
    assert config.to_diff_dict() == model.config.to_diff_dict()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, SectorForCausalLM)
    ids = _sequences(draws)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("variant", range(tokens.NUM_SHIFTS), ids="variant{}".format)
def test_longest_problems_are_within_reach(model: SectorForCausalLM, variant: int, draws: torch.Generator) -> None:
    problems = draw_problems(tokens.MAX_DIGITS, 1, draws)
    layout = PlaceLayout(variant=variant)
    answer = layout.answer_ids(torch.ones(1, tokens.MAX_DIGITS + 1, dtype=torch.int64))
    ids = torch.cat([layout.prompt_ids(problems, tokens.ANSWER), answer], dim=1)
    assert bool(model.hidden_states(ids).isfinite().all())
