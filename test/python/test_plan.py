"""Cache sizes, configuration files and the command line of `mqa plan`."""

import json
import re
from pathlib import Path

import pytest

from commands import exit_code
from mqa.__main__ import main
from mqa.plan import CacheFormat, Model, cache_bytes, compare, max_batch, max_context, token_bytes
from mqa.plan_config import model_from_config
from mqa.units import format_bytes, parse_size

TEXTBOOK = Model(num_layers=61, num_heads=128, num_kv_heads=128, head_dim=128)
SMOLLM2 = Model(num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64)
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "hidden_size": 7168,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "torch_dtype": "bfloat16",
}
LLAMA = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
}


def test_textbook_case_to_the_byte() -> None:
    bf16 = CacheFormat("bfloat16")
    mha = cache_bytes(TEXTBOOK.with_kv_heads(128), bf16, context=100_000)
    mqa = cache_bytes(TEXTBOOK.with_kv_heads(1), bf16, context=100_000)
    assert (mha, mqa) == (399_769_600_000, 3_123_200_000)


@pytest.mark.parametrize(
    ("dtype", "scale_per_vector", "expected"),
    [
        ("float32", True, 2 * 30 * 3 * 64 * 4),
        ("bfloat16", True, 2 * 30 * 3 * 64 * 2),
        ("float16", True, 2 * 30 * 3 * 64 * 2),
        ("int8", True, 2 * 30 * 3 * (64 + 4)),
        ("float8_e4m3fn", True, 2 * 30 * 3 * (64 + 4)),
        ("int8", False, 2 * 30 * 3 * 64),
    ],
)
def test_token_bytes_by_dtype(dtype: str, scale_per_vector: bool, expected: int) -> None:
    assert token_bytes(SMOLLM2.as_configured(), CacheFormat(dtype, scale_per_vector)) == expected


def test_latent_attention_caches_one_vector() -> None:
    model = model_from_config(DEEPSEEK_V3)
    latent = model.as_configured()
    assert (latent.kind, latent.num_kv_heads) == ("MLA", 1)
    assert token_bytes(latent, CacheFormat("bfloat16")) == 61 * (512 + 64) * 2
    assert token_bytes(latent, CacheFormat("int8")) == 61 * (512 + 64 + 4)
    # The same model without compression has keys of 192 and values of 128.
    assert token_bytes(model.with_kv_heads(128), CacheFormat("bfloat16")) == 61 * 128 * 320 * 2


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_largest_context_and_batch_are_tight(dtype: str) -> None:
    attention, cache_format, memory = SMOLLM2.as_configured(), CacheFormat(dtype), 10**9 + 7
    context = max_context(attention, cache_format, memory=memory, batch=3)
    batch = max_batch(attention, cache_format, memory=memory, context=1000)
    assert cache_bytes(attention, cache_format, context=context, batch=3) <= memory
    assert cache_bytes(attention, cache_format, context=context + 1, batch=3) > memory
    assert cache_bytes(attention, cache_format, context=1000, batch=batch) <= memory
    assert cache_bytes(attention, cache_format, context=1000, batch=batch + 1) > memory


def test_comparison_spans_mha_to_mqa_with_the_model_once() -> None:
    rows = compare(SMOLLM2, CacheFormat("bfloat16"), context=8192, batch=2, memory=10**9)
    assert [(r.attention, r.num_kv_heads, r.as_configured) for r in rows] == [
        ("MHA", 9, False),
        ("GQA", 3, True),
        ("MQA", 1, False),
    ]
    assert [r.times_smaller_than_mha for r in rows] == [1, 3, 9]
    assert rows[1].cache_bytes == 23_040 * 8192 * 2
    assert (rows[1].max_context, rows[1].max_batch) == (21_701, 5)


def test_comparison_shows_the_usual_group_sizes() -> None:
    rows = compare(TEXTBOOK, CacheFormat(), context=1, batch=1)
    assert [row.num_kv_heads for row in rows] == [128, 32, 16, 8, 1]
    assert (rows[0].max_context, rows[0].max_batch) == (None, None)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(LLAMA, (32, 32, 8, 128), id="llama"),
        pytest.param(LLAMA | {"head_dim": 64}, (32, 32, 8, 64), id="explicit-head-dim"),
        pytest.param(LLAMA | {"head_dim": None}, (32, 32, 8, 128), id="null-head-dim"),
        pytest.param(LLAMA | {"num_key_value_heads": None}, (32, 32, 32, 128), id="null-kv"),
        pytest.param(
            {"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768},
            (12, 12, 12, 64),
            id="gpt2",
        ),
        pytest.param(
            {"model_type": "gpt_bigcode", "n_layer": 40, "n_head": 48, "n_embd": 6144},
            (40, 48, 1, 128),
            id="starcoder-relies-on-class-default",
        ),
        pytest.param(
            {
                "model_type": "gpt_bigcode",
                "n_layer": 40,
                "n_head": 48,
                "n_embd": 6144,
                "multi_query": False,
            },
            (40, 48, 48, 128),
            id="starcoder-mha",
        ),
        pytest.param(
            {
                "model_type": "falcon",
                "num_hidden_layers": 32,
                "num_attention_heads": 71,
                "num_kv_heads": 71,
                "new_decoder_architecture": False,
                "hidden_size": 4544,
            },
            (32, 71, 1, 64),
            id="falcon-7b-relies-on-class-default",
        ),
        pytest.param(
            {
                "model_type": "falcon",
                "num_hidden_layers": 60,
                "num_attention_heads": 128,
                "num_kv_heads": 8,
                "multi_query": True,
                "new_decoder_architecture": True,
                "hidden_size": 8192,
            },
            (60, 128, 8, 64),
            id="falcon-40b",
        ),
        pytest.param(
            {
                "model_type": "chatglm",
                "num_layers": 28,
                "num_attention_heads": 32,
                "kv_channels": 128,
                "multi_query_attention": True,
                "multi_query_group_num": 2,
            },
            (28, 32, 2, 128),
            id="chatglm",
        ),
        pytest.param(
            {
                "model_type": "chatglm",
                "num_layers": 28,
                "num_attention_heads": 32,
                "hidden_size": 4096,
                "multi_query_attention": False,
                "multi_query_group_num": 2,
            },
            (28, 32, 32, 128),
            id="chatglm-mha",
        ),
        pytest.param(
            {"d_model": 6144, "n_heads": 48, "n_layers": 40, "attn_config": {"kv_n_heads": 8}},
            (40, 48, 8, 128),
            id="dbrx",
        ),
        pytest.param(
            {
                "d_model": 4096,
                "n_heads": 32,
                "n_layers": 32,
                "attn_config": {"attn_type": "multiquery_attention"},
            },
            (32, 32, 1, 128),
            id="mpt-mqa",
        ),
        pytest.param({"text_config": LLAMA}, (32, 32, 8, 128), id="nested"),
        pytest.param(
            {
                "text_config": {
                    "model_type": "gemma3_text",
                    "hidden_size": 2560,
                    "num_hidden_layers": 34,
                }
            },
            (34, 8, 4, 256),
            id="gemma3-relies-on-class-defaults",
        ),
    ],
)
def test_config_fields(config: dict[str, object], expected: tuple[int, ...]) -> None:
    model = model_from_config(config)
    assert (model.num_layers, model.num_heads, model.num_kv_heads, model.head_dim) == expected


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({}, "no head_dim: 4096 / 32 = 128"),
        ({"num_key_value_heads": None}, "no number of KV heads"),
        ({"sliding_window": 1024}, "sliding_window 1024"),
        ({"attention_chunk_size": 8192}, "attention_chunk_size 8192"),
        ({**DEEPSEEK_V3, "index_head_dim": 128}, "indexer"),
    ],
)
def test_assumptions_are_noted(changes: dict[str, object], note: str) -> None:
    assert note in " ".join(model_from_config(LLAMA | changes).notes)


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": None},
        {"sliding_window": 1024, "use_sliding_window": False},
        {"sliding_window": 1024, "layer_types": ["full_attention"] * 32},
    ],
)
def test_inactive_windows_are_not_noted(changes: dict[str, object]) -> None:
    assert "slots" not in " ".join(model_from_config(LLAMA | changes).notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers or n_layer .* got none"),
        ({"num_hidden_layers": 0}, "num_hidden_layers to be a positive integer, got 0"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers to be a positive integer, got '32'"),
        ({"num_key_value_heads": [8, 4]}, r"num_key_value_heads .* got \[8, 4\]"),
        ({"num_key_value_heads": 5}, "divide num_heads = 32, got 5"),
        ({"num_attention_heads": True}, "num_attention_heads .* got True"),
        ({"hidden_size": 4097}, "head_dim, .* got 4097"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"num_kv_shared_layers": 10}, "num_kv_shared_layers"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "layer_types linear_attention"),
        ({"kv_lora_rank": 512}, "qk_rope_head_dim, got none"),
    ],
)
def test_models_that_cannot_be_described_are_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model_from_config(LLAMA | changes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512", 512),
        ("1.5k", 1500),
        ("80GB", 80 * 10**9),
        ("80 gb", 80 * 10**9),
        ("24GiB", 24 * 2**30),
        ("2TiB", 2 * 2**40),
        ("512Mi", 512 * 2**20),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "5iB", "1e9", "3PB", "24GiBB"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size such as"):
        parse_size(text)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 bytes"), (999, "999 bytes"), (999_600, "1 MB"), (10**17, "100,000 TB")],
)
def test_format_bytes(count: int, expected: str) -> None:
    assert format_bytes(count) == expected


def test_textbook_preset_prints_the_textbook_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--preset", "textbook"]) == 0
    lines = capsys.readouterr().out.splitlines()
    mha, mqa = (next(line for line in lines if line.startswith(kind)) for kind in ("MHA", "MQA"))
    assert mha.split()[-5:] == ["128", "3,997,696", "400", "GB", "1/1"]
    assert mqa.split()[-5:] == ["1", "31,232", "3.12", "GB", "1/128"]


def test_json_of_a_config_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"torch_dtype": "float16"}))
    options = ["--context", "1000", "--batch", "4", "--memory", "1GiB", "--json"]
    assert main(["plan", str(tmp_path), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["format"] == {"dtype": "float16", "scale_per_vector": True}
    assert (report["context"], report["batch"], report["memory"]) == (1000, 4, 2**30)
    (row,) = [row for row in report["estimates"] if row["as_configured"]]
    assert (row["attention"], row["token_bytes"]) == ("GQA", 131_072)
    assert row["cache_bytes"] == 131_072 * 4000
    assert (row["max_context"], row["max_batch"]) == (2048, 8)


def test_nested_config_takes_the_outer_dtype_and_its_notes_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "vision.json"
    file.write_text(json.dumps({"torch_dtype": "float32", "text_config": LLAMA}))
    assert main(["plan", str(file), "--memory", "1GB"]) == 0
    output = capsys.readouterr().out
    assert "float32 cache, 1 x 8,192 tokens" in output
    assert "In 1 GB of memory" in output
    assert "4096 / 32 = 128 is assumed" in output


def test_flags_describe_the_same_model_as_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V3))
    main(["plan", str(tmp_path), "--dtype", "fp8", "--scale-per-head", "--json"])
    from_file = json.loads(capsys.readouterr().out)["estimates"]
    # A key and a value of 160 elements are as large as DeepSeek's 192 and 128.
    flags = ["--layers", "61", "--heads", "128", "--head-dim", "160", "--latent-dim", "576"]
    main(["plan", *flags, "--dtype", "float8_e4m3fn", "--scale-per-head", "--json"])
    assert json.loads(capsys.readouterr().out)["estimates"] == from_file
    assert [row["token_bytes"] for row in from_file if row["as_configured"]] == [61 * 576]


def test_plot_is_an_image(tmp_path: Path) -> None:
    image = tmp_path / "plan.png"
    main(["plan", "--preset", "textbook", "--memory", "80GB", "--plot", str(image)])
    assert image.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "expected the model as a config.json, a --preset, or .* got none"),
        (["--preset", "textbook", "--layers", "2"], "got several"),
        (["--preset", "nope"], "argument --preset: invalid choice: 'nope'"),
        (["--layers", "2", "--heads", "4"], "expected also --head-dim"),
        (["--preset", "textbook", "--memory", "lots"], "expected a size .* got 'lots'"),
        (["--preset", "textbook", "--batch", "0"], "positive whole number, got '0'"),
        (["--preset", "textbook", "--plot", "/nowhere/plan.png"], "No such file or directory"),
        (["--preset", "textbook", "--plot", "plan.xyz"], "xyz"),
        (["missing"], "missing: No such file or directory"),
        (["."], "config.json: No such file or directory"),
        (["broken.json"], "broken.json: expected a JSON file, got"),
        (["list.json"], "list.json: expected a JSON object, got list"),
        (["empty.json"], "empty.json: expected a field num_attention_heads"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("broken.json", "{"), ("list.json", "[]"), ("empty.json", "{}")):
        Path(name).write_text(text)
    code = exit_code("plan", *arguments)
    error = capfd.readouterr().err
    assert code == 2
    assert error.count("\n") == 1
    assert re.match(f"mqa plan: .*{sentence}", error)
