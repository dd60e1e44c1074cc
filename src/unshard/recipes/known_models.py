"""Sizes of well-known models, to name the nearest one.

Source:
    config.json of every model on the hub.
"""

from __future__ import annotations

from unshard.recipes.families import Sizes

# name, layers, hidden, intermediate, vocabulary, keys (0: not told apart by it)
_TABLE = """
Llama-2-7B            32  4096  11008   32000  4096
Llama-2-13B           40  5120  13824   32000  5120
Llama-2-70B           80  8192  28672   32000  1024
Llama-30B             60  6656  17920   32000  6656
Llama-65B             80  8192  22016   32000  8192
Llama-3-8B            32  4096  14336  128256  1024
Llama-3-70B           80  8192  28672  128256  1024
Llama-3.1-405B       126 16384  53248  128256  1024
Llama-3.2-1B          16  2048   8192  128256   512
Llama-3.2-3B          28  3072   8192  128256  1024
TinyLlama-1.1B        22  2048   5632   32000   256
Mistral-7B            32  4096  14336   32000  1024
Mistral-Nemo-12B      40  5120  14336  131072  1024
Mistral-Small-24B     40  5120  32768  131072  1024
Mixtral-8x7B          32  4096  14336   32000  1024
Mixtral-8x22B         56  6144  16384   32768  1024
SmolLM2-135M          30   576   1536   49152   192
SmolLM2-360M          32   960   2560   49152   320
SmolLM2-1.7B          24  2048   8192   49152  2048
Qwen2.5-0.5B          24   896   4864  151936   128
Qwen2.5-1.5B          28  1536   8960  151936   256
Qwen2.5-3B            36  2048  11008  151936   256
Qwen2.5-7B            28  3584  18944  152064   512
Qwen2.5-14B           48  5120  13824  152064  1024
Qwen2.5-32B           64  5120  27648  152064  1024
Qwen2.5-72B           80  8192  29568  152064  1024
Qwen3-0.6B            28  1024   3072  151936  1024
Qwen3-1.7B            28  2048   6144  151936  1024
Qwen3-4B              36  2560   9728  151936  1024
Qwen3-8B              36  4096  12288  151936  1024
Qwen3-14B             40  5120  17408  151936  1024
Qwen3-32B             64  5120  25600  151936  1024
Qwen3-30B-A3B         48  2048    768  151936   512
Qwen3-235B-A22B       94  4096   1536  151936   512
Gemma-2B              18  2048  16384  256000   256
Gemma-7B              28  3072  24576  256000  4096
Gemma-2-2B            26  2304   9216  256000  1024
Gemma-2-9B            42  3584  14336  256000  2048
Gemma-2-27B           46  4608  36864  256000  2048
Gemma-3-270M          18   640   2048  262144   256
Gemma-3-1B            26  1152   6912  262144   256
Gemma-3-4B            34  2560  10240  262208  1024
Gemma-3-12B           48  3840  15360  262208  2048
Gemma-3-27B           62  5376  21504  262208  2048
Phi-2                 32  2560  10240   51200     0
Phi-3-mini            32  3072   8192   32064     0
Phi-4                 40  5120  17920  100352     0
GPT-2                 12   768   3072   50257     0
GPT-2-medium          24  1024   4096   50257     0
GPT-2-large           36  1280   5120   50257     0
GPT-2-XL              48  1600   6400   50257     0
Pythia-160M           12   768   3072   50304     0
Pythia-410M           24  1024   4096   50304     0
Pythia-1B             16  2048   8192   50304     0
Pythia-1.4B           24  2048   8192   50304     0
Pythia-2.8B           32  2560  10240   50304     0
Pythia-6.9B           32  4096  16384   50432     0
Pythia-12B            36  5120  20480   50688     0
OLMo-2-1B             16  2048   8192  100352  2048
OLMo-2-7B             32  4096  11008  100352  4096
OLMo-2-13B            40  5120  13824  100352  5120
OLMo-2-32B            64  5120  27648  100352  1024
Yi-6B                 32  4096  11008   64000   512
Yi-34B                60  7168  20480   64000  1024
DeepSeek-V3           61  7168  18432  129280     0
BERT-base             12   768   3072   30522     0
BERT-large            24  1024   4096   30522     0
"""


def known_models() -> dict[str, Sizes]:
    """Return the sizes of well-known models by name."""
    rows = (line.split() for line in _TABLE.strip().splitlines())
    return {
        name: Sizes(int(layers), int(hidden), int(inner), int(vocabulary), int(keys) or None)
        for name, layers, hidden, inner, vocabulary, keys in rows
    }


def nearest_model(sizes: Sizes) -> str | None:
    """Return the well-known model of these layers and widths, or None where there is none.

    The vocabulary may differ, for training resizes it; among equals the nearest one decides.
    """

    def fits(known: Sizes) -> bool:
        same = (known.layers, known.hidden, known.intermediate) == (
            sizes.layers,
            sizes.hidden,
            sizes.intermediate,
        )
        return same and (known.keys is None or sizes.keys in (None, known.keys))

    candidates = {name: known for name, known in known_models().items() if fits(known)}
    rows = sizes.vocabulary or 0
    return min(candidates, key=lambda name: abs((candidates[name].vocabulary or 0) - rows), default=None)
