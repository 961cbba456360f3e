"""Pretrained models: those that are opened, those that are refused, and that none of their code is run."""

import hashlib
import json
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_text import NEWLINE, merging_tokenizer, save_text_model, small_text_model
from transformers import LlamaForCausalLM

from sector.engine.errors import InputError
from sector.engine.models.checkpoint import load_checkpoint, load_sector, save_checkpoint, weights_sha256
from sector.engine.models.pretrained import open_pretrained
from sector.engine.models.text import TextModel

KINDS = pytest.mark.parametrize("kind", ["llama", "qwen2"])


def _logits(model: TextModel) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(model.alphabet.size).unsqueeze(0)).logits


@KINDS
def test_a_directory_is_opened_as_it_is(kind: str, tmp_path: Path) -> None:
    model = small_text_model(kind, start=kind == "llama")
    opened = open_pretrained(save_text_model(model, tmp_path / "model"))
    assert torch.equal(_logits(opened), _logits(model))
    assert opened.alphabet == model.alphabet and opened.alphabet.lead == ((2,) if kind == "llama" else ())
    assert opened.dtype == torch.float32 and not opened.training


@KINDS
def test_checkpoints_hold_every_weight_once_and_say_what_they_are(kind: str, tmp_path: Path) -> None:
    model = small_text_model(kind)
    save_checkpoint(model, tmp_path / "model")
    data = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert weights_sha256(model) == hashlib.sha256(data).hexdigest()
    assert ("lm_head.weight" in load_file(tmp_path / "model" / "model.safetensors")) == (kind == "llama")
    loaded = load_checkpoint(tmp_path / "model")
    assert isinstance(loaded, TextModel) and weights_sha256(loaded) == weights_sha256(model)
    assert torch.equal(_logits(loaded), _logits(model)) and loaded.alphabet == model.alphabet
    with pytest.raises(InputError, match="is a model of text; this needs one of sector's own"):
        load_sector(tmp_path / "model")


def test_weights_in_bfloat16_are_read_as_float32(tmp_path: Path) -> None:
    model = small_text_model()
    path = save_text_model(model, tmp_path / "model")
    half = {name: tensor.bfloat16() for name, tensor in load_file(path / "model.safetensors").items()}
    save_file(half, path / "model.safetensors", metadata={"format": "pt"})
    opened = open_pretrained(path)
    assert {tensor.dtype for tensor in opened.weights().values()} == {torch.float32}
    torch.testing.assert_close(_logits(opened), _logits(model), atol=0.5, rtol=0)


def test_penalties_of_its_makers_are_not_ours(tmp_path: Path) -> None:
    path = save_text_model(small_text_model(), tmp_path / "model")
    (path / "generation_config.json").write_text(json.dumps({"repetition_penalty": 9.0, "do_sample": True}))
    assert open_pretrained(path).network.generation_config.repetition_penalty is None


def test_a_tokenizer_that_merges_digits_is_refused(tmp_path: Path) -> None:
    path = save_text_model(small_text_model(vocab_size=300), tmp_path / "model")
    merging_tokenizer().save_pretrained(path)
    with pytest.raises(InputError, match=r"the tokenizer of .*model reads '\d\d+' as one token; choose a model"):
        open_pretrained(path)


def test_code_and_pickles_beside_the_weights_are_not_run(tmp_path: Path) -> None:
    path = save_text_model(small_text_model(), tmp_path / "model")
    (path / "evil.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\nclass Evil: pass\n")
    auto = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"auto_map": auto}))
    assert isinstance(open_pretrained(path).network, LlamaForCausalLM)
    (path / "model.safetensors").unlink()
    torch.save({}, path / "pytorch_model.bin")
    with pytest.raises(InputError, match="is not a causal model that transformers reads"):
        open_pretrained(path)
    assert not (tmp_path / "trace").exists()


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    path = save_text_model(small_text_model(), tmp_path / "model")
    state = load_file(path / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights \(model.layers.1.mlp.up_proj.weight\)"):
        open_pretrained(path)


@pytest.mark.parametrize("name", ["nothing", "weights.bin"], ids=["missing", "other_file"])
def test_what_is_neither_directory_nor_gguf(tmp_path: Path, name: str) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"is no directory and no \.gguf file; give a model in Hugging Face form"):
        open_pretrained(tmp_path / name)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF, but not really")
    with pytest.raises(InputError, match="is not a causal model that transformers reads"):
        open_pretrained(tmp_path / "model.gguf")


def _write_gguf(model: TextModel, path: Path, start: bool) -> Path:
    """A Llama as a GGUF file, weights as they are."""
    config, names = model.config, ["<pad>", "<unk>", "<s>", "</s>"]
    names += sorted(set(model.tokenizer.get_vocab()) - set(names), key=model.tokenizer.convert_tokens_to_ids)
    # Byte-level BPE writes a newline as another character. It reads no file without merges.
    names = [NEWLINE if name == "\n" else name for name in names] + ["++", "+++"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(names))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(names)
    writer.add_token_types([3, 3, 3, 3] + [1] * (len(names) - 4))
    writer.add_token_merges(["+ +", "++ +"])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_add_bos_token(start)
    for name, tensor in _gguf_tensors(model).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_tensors(model: TextModel) -> dict[str, torch.Tensor]:
    """Weights by GGUF's names; it turns queries and keys by neighbours, where transformers turns halves."""
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    tensors = {}
    for name, tensor in model.weights().items():
        count = next((heads[part] for part in name.split(".") if part in heads), 0)
        if count:
            tensor = tensor.view(count, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        tensors[names.get_name(name, try_suffixes=[".weight"]) or name] = tensor.contiguous()
    return tensors


@pytest.mark.parametrize("start", [False, True], ids=["bare", "with_start"])
def test_gguf(tmp_path: Path, start: bool) -> None:
    model = small_text_model(vocab_size=len(small_text_model().tokenizer) + 2)
    opened = open_pretrained(_write_gguf(model, tmp_path / "model.gguf", start))
    torch.testing.assert_close(_logits(opened), _logits(model), atol=1e-4, rtol=0)
    assert opened.alphabet.lead == ((2,) if start else ())
    # It goes on as any other checkpoint does, without the file.
    save_checkpoint(opened, tmp_path / "checkpoint")
    (tmp_path / "model.gguf").unlink()
    loaded = load_checkpoint(tmp_path / "checkpoint")
    assert isinstance(loaded, TextModel) and loaded.alphabet == opened.alphabet
    assert torch.equal(_logits(loaded), _logits(opened))
