"""Multi-Query Attention and its KV cache: fast operators for PyTorch and LibTorch."""

from mqa._library import cmake_prefix_path as cmake_prefix_path
from mqa.cache import KVCache as KVCache
from mqa.chat import ChatTemplate as ChatTemplate
from mqa.config import DecoderConfig as DecoderConfig
from mqa.convert import convert as convert
from mqa.decoder import Decoder as Decoder
from mqa.exact_blocks import with_exact_blocks as with_exact_blocks
from mqa.export import export_aoti as export_aoti
from mqa.export import export_torchscript as export_torchscript
from mqa.generate import GenerationStats as GenerationStats
from mqa.generate import generate as generate
from mqa.likelihood import nll as nll
from mqa.ops import attention as attention
from mqa.ops import attention_lse as attention_lse
from mqa.ops import cpu_isa as cpu_isa
from mqa.ops import kv_append as kv_append
from mqa.ops import merge as merge
from mqa.save import save as save
from mqa.speculative import Drafter as Drafter
from mqa.speculative import DraftModel as DraftModel
from mqa.speculative import PromptLookup as PromptLookup
from mqa.weights import load as load
from mqa.weights import load_gguf as load_gguf
from mqa.weights import load_safetensors as load_safetensors
