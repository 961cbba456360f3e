"""The model in Hugging Face form: the tokens that its logits allow, the inputs they depend on, saving and loading."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

import sector  # noqa: F401 (registers)
from sector.engine.language import tokens
from sector.engine.language.operands import draw_problems
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.models.sector import SectorForCausalLM, new_model
from sector.engine.models.sector_config import SectorConfig
from sector.engine.training import supervised


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
@pytest.mark.parametrize("kept", [2, torch.tensor([3, 20]), torch.tensor([-1])], ids=["last", "some", "one"])
def test_logits_to_keep(model: SectorForCausalLM, kept: int | Tensor, draws: torch.Generator) -> None:
    ids = _sequences(draws)
    expected = model(ids).logits[:, -kept:] if isinstance(kept, int) else model(ids).logits[:, kept]
    torch.testing.assert_close(model(ids, logits_to_keep=kept).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_output_is_a_tuple_if_asked_for(model: SectorForCausalLM, draws: torch.Generator) -> None:
    ids = _sequences(draws)
    loss, logits = model(ids, labels=ids, return_dict=False)
    assert torch.equal(logits, model(ids).logits) and loss.ndim == 0
    model.config.return_dict = False
    assert isinstance(model(ids), tuple)


@torch.no_grad()
def test_hidden_states_are_those_between_the_blocks(model: SectorForCausalLM, draws: torch.Generator) -> None:
    ids = _sequences(draws)
    plain = model(ids)
    assert plain.hidden_states is None and plain.attentions is None
    shown = model(ids, output_hidden_states=True)
    assert torch.equal(shown.logits, plain.logits)
    assert torch.equal(shown.hidden_states[0], model.embed(tokens.class_of(ids)))
    assert torch.equal(shown.hidden_states[-1], model.hidden_states(ids))
    assert len(shown.hidden_states) == 4
    model.config.output_hidden_states = True
    assert len(model(ids).hidden_states) == 4


@torch.no_grad()
def test_attentions_are_what_values_are_added_up_by(model: SectorForCausalLM, draws: torch.Generator) -> None:
    ids = _sequences(draws)
    mask = torch.ones_like(ids)
    mask[:, :3] = 0
    read: list[Tensor] = []
    model.blocks[1].attention.qkv.register_forward_hook(lambda module, inputs, output: read.append(output))
    model.blocks[1].attention.out.register_forward_hook(lambda module, inputs, output: read.append(inputs[0]))
    for padding in (None, mask):
        read.clear()
        output = model(ids, attention_mask=padding, output_attentions=True)
        weights = output.attentions[1]
        assert torch.equal(output.logits, model(ids, attention_mask=padding).logits)
        assert len(output.attentions) == 3 and weights.shape == (6, 4, *2 * ids.shape[1:])
        values = read[0].unflatten(2, (3, 4, 16))[:, :, 2].transpose(1, 2)
        added = (weights @ values).transpose(1, 2).flatten(2)
        torch.testing.assert_close(added, read[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bool", "int", "float"])
def test_a_mask_of_ones_own(model: SectorForCausalLM, kind: str, draws: torch.Generator) -> None:
    """Four-dimensional masks, as for packed rows or for reading in both directions."""
    ids = _sequences(draws)
    padding = torch.ones_like(ids)
    padding[:, :4] = 0
    seen = torch.ones(2 * ids.shape[1:], dtype=torch.bool).tril() & padding[:, None, None, :].bool()
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    mask = {"bool": seen, "int": seen.long(), "float": added}[kind]
    logits = model(ids, attention_mask=mask).logits
    assert not bool(logits.isnan().any())
    expected = model(ids, attention_mask=padding).logits
    torch.testing.assert_close(logits[:, 4:], expected[:, 4:], rtol=1e-4, atol=1e-4)
    half = model.to(torch.bfloat16)(ids, attention_mask=mask).logits
    assert not bool(half.isnan().any())


@torch.no_grad()
def test_packed_rows_do_not_see_each_other(model: SectorForCausalLM, draws: torch.Generator) -> None:
    ids = _sequences(draws)
    packed, places = ids[:4].reshape(2, -1), torch.arange(ids.shape[1]).repeat(2)[None]
    logits = model(packed, position_ids=places).logits
    torch.testing.assert_close(logits.view(4, ids.shape[1], -1), model(ids[:4]).logits)
    # Positions that go on by one say nothing.
    assert torch.equal(model(ids, position_ids=torch.arange(ids.shape[1])[None]).logits, model(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_a_static_cache_changes_nothing(model: SectorForCausalLM, padded: bool, draws: torch.Generator) -> None:
    ids = _sequences(draws)
    mask = torch.ones_like(ids)
    mask[:, : 3 * padded] = 0
    whole = model(ids, attention_mask=mask).logits
    cache = StaticCache(config=model.config, max_cache_len=40)
    parts = []
    for start, stop in ((0, 9), (9, 15), (15, 16)):
        some = mask[:, :stop] if padded else None
        parts.append(model(ids[:, start:stop], attention_mask=some, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole[:, :16], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(0, 7), (3, 0), (0, 0)], ids=str)
def test_a_batch_of_nothing(model: SectorForCausalLM, shape: tuple[int, int]) -> None:
    nothing = torch.zeros(shape, dtype=torch.int64)
    for mask in (None, torch.ones_like(nothing)):
        output = model(nothing, attention_mask=mask, labels=nothing, use_cache=True)
        assert output.logits.shape == (*shape, tokens.VOCAB_SIZE)
        assert output.loss.item() == 0


ONE_ID = torch.tensor([[0]])
MISUSES = [
    pytest.param({}, "input_ids", id="no_ids"),
    pytest.param({"inputs_embeds": torch.zeros(1, 1, 64)}, "inputs_embeds", id="embeddings"),
    pytest.param({"input_ids": ONE_ID, "cache_position": torch.zeros(1)}, "cache_position", id="cache_position"),
    pytest.param({"input_ids": ONE_ID, "token_type_ids": ONE_ID}, "token_type_ids", id="token_type_ids"),
    pytest.param({"input_ids": ONE_ID[0]}, r"\[B, T\]", id="one_dimension"),
    pytest.param({"input_ids": ONE_ID.float()}, "integers", id="ids_of_floats"),
    pytest.param({"input_ids": ONE_ID + tokens.VOCAB_SIZE}, str(tokens.VOCAB_SIZE), id="id_too_large"),
    pytest.param({"input_ids": ONE_ID - 100}, "-100", id="negative_id"),
    pytest.param({"input_ids": ONE_ID, "attention_mask": torch.ones(1, 2)}, "attention_mask", id="wide_mask"),
    pytest.param({"input_ids": ONE_ID, "attention_mask": torch.ones(2, 1)}, "attention_mask", id="high_mask"),
    pytest.param({"input_ids": ONE_ID, "attention_mask": torch.ones(1, 1, 2, 1)}, "attention_mask", id="long_mask"),
    pytest.param({"input_ids": ONE_ID, "labels": torch.zeros(1, 2).long()}, "labels", id="long_labels"),
    pytest.param(
        {"input_ids": ONE_ID.repeat(1, 3), "labels": ONE_ID.repeat(1, 3), "logits_to_keep": 1},
        "logits_to_keep",
        id="labels_of_kept_logits",
    ),
    pytest.param(
        {"input_ids": ONE_ID.repeat(1, 3), "labels": ONE_ID.repeat(1, 3) + 5000}, "5000", id="label_too_large"
    ),
]


@pytest.mark.parametrize(("arguments", "named"), MISUSES)
def test_misuse_is_one_clear_line(model: SectorForCausalLM, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises((ValueError, TypeError, IndexError), match=named) as caught:
        model(**arguments)
    assert "\n" not in str(caught.value)


def test_embeddings_are_those_of_the_classes(model: SectorForCausalLM) -> None:
    assert model.get_input_embeddings() is model.embed and model.get_output_embeddings() is model.head
    other, head = nn.Embedding(tokens.NUM_CLASSES, 64), nn.Linear(64, tokens.NUM_CLASSES, bias=False)
    model.set_input_embeddings(other)
    model.set_output_embeddings(head)
    assert model.embed is other and model.head is head
    with pytest.raises(ValueError, match="4368"):
        model.set_input_embeddings(nn.Embedding(tokens.VOCAB_SIZE, 64))
    with pytest.raises(ValueError, match="4368"):
        model.set_output_embeddings(nn.Linear(64, tokens.VOCAB_SIZE, bias=False))


def test_the_vocabulary_keeps_its_size(model: SectorForCausalLM) -> None:
    for sizes in ((), (tokens.VOCAB_SIZE,), (None, 16)):
        assert model.resize_token_embeddings(*sizes) is model.embed
    for sizes in ((tokens.VOCAB_SIZE + 1,), (None, 64), (32,)):
        with pytest.raises(ValueError, match="cannot be resized"):
            model.resize_token_embeddings(*sizes)
    assert model.config.vocab_size == tokens.VOCAB_SIZE


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpoints_change_no_gradient(
    model: SectorForCausalLM, reentrant: bool, draws: torch.Generator
) -> None:
    ids = _sequences(draws)
    model.train()
    gradients = []
    for checkpoints in (False, True):
        if checkpoints:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "step"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)], ids=str)
def test_half_precision_is_near(
    model: SectorForCausalLM, dtype: torch.dtype, step: float, draws: torch.Generator
) -> None:
    """Some thirty roundings of up to half a `step` follow each other in three layers."""
    ids = _sequences(draws)
    rounded = {name: parameter.to(dtype).float() for name, parameter in model.state_dict().items()}
    model.load_state_dict(rounded)
    exact, loss = model.hidden_states(ids), model(ids, labels=ids).loss
    near = model.to(dtype)(ids, labels=ids, output_hidden_states=True)
    error = (near.hidden_states[-1].float() - exact).norm() / exact.norm()
    assert 0 < error < 15 * step
    assert near.loss.dtype == torch.float32
    torch.testing.assert_close(near.loss, loss, rtol=15 * step, atol=0)
    assert model.rope().dtype == torch.float32


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


def test_loss_is_plain_cross_entropy_to_the_bit(model: SectorForCausalLM, draws: torch.Generator) -> None:
    ids = _sequences(draws)
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < 16, -100)
    output = model(ids, labels=labels)
    assert torch.equal(output.loss, F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))


def test_what_can_never_follow_carries_no_loss(model: SectorForCausalLM, draws: torch.Generator) -> None:
    ids = _sequences(draws)
    output = model(ids, labels=ids)
    chances = output.logits[:, :-1].log_softmax(dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    possible = chances.isfinite()
    # Digits in prompts may follow, marks and ends of prompts may not, and all of a completion may.
    assert bool(possible[:, 15:].all()) and bool((~possible[:, :15]).any(dim=1).all())
    torch.testing.assert_close(output.loss, -chances[possible].mean())
    output.loss.backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


def test_loss_of_nothing_is_zero(model: SectorForCausalLM, draws: torch.Generator) -> None:
    ids = _sequences(draws)
    loss = model(ids, labels=torch.full_like(ids, -100)).loss
    loss.backward()
    assert loss.item() == 0


@torch.no_grad()
def test_loss_is_divided_by_the_items_of_all_batches(model: SectorForCausalLM, draws: torch.Generator) -> None:
    ids = _sequences(draws)
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < 16, -100)
    count = (labels[:, 1:] != -100).sum()
    whole = model(ids, labels=labels).loss
    for items in (count, int(count)):
        parts = [
            model(ids[rows], labels=labels[rows], num_items_in_batch=items).loss for rows in ([0, 1], [2, 3, 4, 5])
        ]
        torch.testing.assert_close(torch.stack(parts).sum(), whole)
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    torch.testing.assert_close(model(ids, shift_labels=shifted).loss, whole)


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
