"""Multi-Query Attention and its KV cache: fast operators for PyTorch and LibTorch."""

from mqa import _library

_library.load()  # the decoder looks the operators up when its class is made

from mqa._library import cmake_prefix_path as cmake_prefix_path  # noqa: E402
from mqa.cache import KVCache as KVCache  # noqa: E402
from mqa.convert import convert as convert  # noqa: E402
from mqa.decoder import Decoder as Decoder  # noqa: E402
from mqa.decoder import DecoderConfig as DecoderConfig  # noqa: E402
from mqa.export import export_torchscript as export_torchscript  # noqa: E402
from mqa.generate import generate as generate  # noqa: E402
from mqa.likelihood import nll as nll  # noqa: E402
from mqa.ops import attention as attention  # noqa: E402
from mqa.ops import attention_lse as attention_lse  # noqa: E402
from mqa.ops import kv_append as kv_append  # noqa: E402
from mqa.ops import merge as merge  # noqa: E402
from mqa.weights import load_gguf as load_gguf  # noqa: E402
from mqa.weights import load_safetensors as load_safetensors  # noqa: E402
