"""Findings: what a person should know about a checkpoint, a conversion or a model.

Every finding has a stable code, so that scripts can rely on it and people can search for it. The
table below is the one place that gives a code its severity and its title; the words of a single
finding (which tensor, what was seen, what to do) are given where it is found.

    U0xx  the environment     this machine beside the one that trained: versions, devices, precision
    U1xx  the checkpoint      its files, layout, integrity and training state
    U2xx  names               wrappers, containers, renamed and dropped tensors
    U3xx  ties                tied weights
    U4xx  dtypes              precision on disk and in the output
    U5xx  configuration       vocabulary, config.json and what was edited in it
    U6xx  completeness        base, tokenizer and other files inference needs
    U7xx  proof               what verification found, and what it could not check
    U8xx  values              what the numbers tell, alone and beside those of the base
    U9xx  mending             what a repair of a model folder cannot do, and what it did
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much a finding matters: `info` is a fact, `warning` needs a look, `error` is wrong."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Rule:
    """What every finding with one code has in common."""

    severity: Severity
    title: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a person should know, with its evidence and its remedy."""

    code: str
    severity: Severity
    title: str
    subject: str
    saw: str
    expected: str | None = None
    remedy: str | None = None

    def to_json(self) -> dict[str, str | None]:
        """Return the finding as plain values; absent fields are None."""
        return asdict(self)


_INFO, _WARNING, _ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR

RULES: dict[str, Rule] = {
    "U001": Rule(_INFO, "The environment of training was inferred, not recorded"),
    "U002": Rule(_ERROR, "A package that runs the model is missing"),
    "U003": Rule(_INFO, "The package of an adapter is missing, and not needed to merge it"),
    "U004": Rule(_WARNING, "torch is too old for the files"),
    "U005": Rule(_INFO, "torch is of another version than in training"),
    "U006": Rule(_WARNING, "transformers is of an older major version than in training"),
    "U007": Rule(_INFO, "transformers is of another version than in training"),
    "U008": Rule(_ERROR, "transformers does not know the type of the model"),
    "U009": Rule(_ERROR, "tokenizers is too old for the tokenizer"),
    "U010": Rule(_INFO, "Python is older than in training"),
    "U011": Rule(_ERROR, "The model does not fit into memory"),
    "U012": Rule(_WARNING, "The model fits into memory only in part, or only in 16 bits"),
    "U013": Rule(_WARNING, "bfloat16 is emulated by the devices here"),
    "U014": Rule(_INFO, "bfloat16 is computed by software here"),
    "U015": Rule(_INFO, "Training computed in float16"),
    "U016": Rule(_WARNING, "The default dtype of training was another one"),
    "U017": Rule(_INFO, "Attention runs by another implementation"),
    "U018": Rule(_ERROR, "The configuration asks for an implementation of attention that is not here"),
    "U019": Rule(_INFO, "Training multiplied float32 matrices in another precision"),
    "U020": Rule(_INFO, "Training ran on another kind of device"),
    "U021": Rule(_WARNING, "torch does not use the devices that are here"),
    "U022": Rule(_INFO, "Training ran on devices of another model"),
    "U023": Rule(_WARNING, "The package that runs the quantised weights is missing"),
    "U024": Rule(_INFO, "Training saw quantised weights of the base"),
    "U101": Rule(_INFO, "One of several checkpoints side by side was taken"),
    "U102": Rule(_INFO, "Training state was left out"),
    "U103": Rule(_WARNING, "The file carries no checksums, so damage cannot be told from data"),
    "U104": Rule(_INFO, "Classes in the file were kept as inert records"),
    "U105": Rule(_INFO, "The tensors lie inside a container"),
    "U106": Rule(_WARNING, "The training parameters cannot be read"),
    "U107": Rule(_INFO, "Other layouts lie beside the checkpoint and were not read"),
    "U108": Rule(_INFO, "Models that only training needs lie beside it and were not taken"),
    "U109": Rule(_WARNING, "Ranks hold different copies of one part; the first was taken"),
    "U110": Rule(_ERROR, "A file of the checkpoint is missing"),
    "U111": Rule(_ERROR, "A file ends before the bytes that it should hold"),
    "U112": Rule(_ERROR, "Part of a tensor is held by no file"),
    "U113": Rule(_WARNING, "Files of another save lie in the folder and were left out"),
    "U114": Rule(_WARNING, "Completeness cannot be proven: no file tells the shapes"),
    "U115": Rule(_WARNING, "The newest step is incomplete; an earlier one was taken"),
    "U116": Rule(_INFO, "Parts of tensors lie in several places"),
    "U117": Rule(_ERROR, "Copies of one part differ"),
    "U118": Rule(_ERROR, "The save was not finished"),
    "U119": Rule(_ERROR, "The checkpoint cannot be read"),
    "U120": Rule(_WARNING, "The order of flattened parameters is that of the model class, not of the files"),
    "U121": Rule(_WARNING, "Tensors without dimensions may have become zero when torch put shards together"),
    "U130": Rule(_ERROR, "Numbers of the model in training are not finite"),
    "U131": Rule(_WARNING, "Every rank holds the whole model, and nothing keeps the ranks alike"),
    "U132": Rule(_INFO, "Ranks hold different numbers in a buffer; the first rank's were taken"),
    "U133": Rule(_ERROR, "Ranks hold different numbers in a parameter; the first rank's were taken"),
    "U134": Rule(_INFO, "State that modules keep beside their tensors was left out"),
    "U135": Rule(_ERROR, "Part of a tensor is on no rank, or on several that are cut otherwise"),
    "U140": Rule(_INFO, "Ranks do not share the output's file system; others wrote for them"),
    "U150": Rule(_INFO, "The base's config.json was edited as training changed it"),
    "U151": Rule(_INFO, "config.json was written anew"),
    "U152": Rule(_WARNING, "The model is not what its class describes"),
    "U153": Rule(_WARNING, "One of several adapters was saved"),
    "U160": Rule(_INFO, "Tensors of the model in training were left as they were"),
    "U161": Rule(_WARNING, "Tensors of the checkpoint were not loaded: the model has no place for them"),
    "U162": Rule(_WARNING, "Buffers that no checkpoint holds look as if nothing had filled them"),
    "U163": Rule(_INFO, "Tensors were cast to the dtypes that training holds them in"),
    "U164": Rule(_WARNING, "Values were lost in the cast to the dtype that training holds them in"),
    "U165": Rule(_INFO, "The optimizer has no state yet, so none was saved"),
    "U166": Rule(_WARNING, "The adapter of the model in training was left as it was"),
    "U201": Rule(_INFO, "Names were changed to those the model needs"),
    "U202": Rule(_INFO, "A tensor was dropped because the model computes it itself"),
    "U203": Rule(_WARNING, "A recomputable tensor could not be checked before it was dropped"),
    "U204": Rule(_WARNING, "The names could not be checked against the model"),
    "U205": Rule(_INFO, "One of several models was selected"),
    "U206": Rule(_INFO, "Tensors of the base that its model class does not load are absent"),
    "U207": Rule(_INFO, "Experts were taken apart or put together, as the model's files have them"),
    "U208": Rule(_INFO, "Names of another scheme were translated"),
    "U209": Rule(_WARNING, "Names of another scheme were kept: nothing tells how to translate them"),
    "U210": Rule(_WARNING, "A tensor was dropped for which the model has no place"),
    "U211": Rule(_ERROR, "Rows of attention are in another order than the scheme's, or the heads are others"),
    "U212": Rule(_INFO, "The order of rows in a head could not be proven with the base's weights"),
    "U220": Rule(_ERROR, "Names carry the segments of a training wrapper"),
    "U221": Rule(_ERROR, "Every name begins with a container of the model"),
    "U222": Rule(_WARNING, "Experts lie as in memory, not as in published files"),
    "U223": Rule(_ERROR, "The names are those of another program"),
    "U224": Rule(_WARNING, "Several models lie among the weights"),
    "U225": Rule(_WARNING, "A head that only training uses lies among the weights"),
    "U226": Rule(_INFO, "Tensors that the model computes itself lie among the weights"),
    "U230": Rule(_ERROR, "Tensors that the model class needs are missing"),
    "U231": Rule(_WARNING, "Tensors that the model class does not load lie among the weights"),
    "U232": Rule(_ERROR, "Tensors that the base has are missing"),
    "U233": Rule(_WARNING, "Tensors that the base does not have lie among the weights"),
    "U236": Rule(_ERROR, "Layers are missing"),
    "U237": Rule(_ERROR, "A layer lacks tensors that its siblings have"),
    "U238": Rule(_ERROR, "Experts are missing"),
    "U290": Rule(_ERROR, "The tensors are not those that the model needs"),
    "U250": Rule(_INFO, "An adapter lies in the checkpoint"),
    "U251": Rule(_INFO, "An adapter was merged into the weights"),
    "U252": Rule(_ERROR, "The scale of an adapter is not known"),
    "U253": Rule(_ERROR, "Parts of an adapter are missing, or do not fit"),
    "U254": Rule(_WARNING, "An adapter changes nothing: its second factors are zero"),
    "U255": Rule(_ERROR, "An adapter was merged with another scale than its configuration says"),
    "U256": Rule(_ERROR, "Tensors of an adapter lie among the weights of a model folder"),
    "U257": Rule(_WARNING, "An adapter lies at the top of a model folder, and would be applied to it"),
    "U258": Rule(_INFO, "An adapter is kept as a folder of its own"),
    "U259": Rule(_WARNING, "The scale that was named is not the one that a file tells"),
    "U260": Rule(_ERROR, "What was written is not the weight with its adapter merged"),
    "U261": Rule(_ERROR, "An adapter is of a kind that is not merged"),
    "U262": Rule(_INFO, "One of several adapters was taken"),
    "U263": Rule(_INFO, "An output head keeps the weights of the base, and is no longer tied"),
    "U301": Rule(_INFO, "A tied duplicate was dropped: the two tensors are equal bit for bit"),
    "U302": Rule(_WARNING, "The tied weights have diverged: both are written, and the tie is off"),
    "U303": Rule(_ERROR, "The flag ties an output head that is another tensor"),
    "U304": Rule(_ERROR, "The output head is missing, and nothing is tied to it"),
    "U305": Rule(_WARNING, "Levels of the configuration disagree about tied weights"),
    "U306": Rule(_INFO, "The output head is a copy of the embedding"),
    "U401": Rule(_INFO, "Tensors are cast"),
    "U402": Rule(_WARNING, "Values overflowed in the cast"),
    "U403": Rule(_WARNING, "Values underflowed to zero in the cast"),
    "U404": Rule(_WARNING, "The training precision and the dtype on disk differ"),
    "U405": Rule(_WARNING, "Most of what training changed is lost in the cast"),
    "U406": Rule(_INFO, "Part of what training changed is lost in the cast"),
    "U407": Rule(_WARNING, "Values will overflow in the cast"),
    "U408": Rule(_INFO, "Many small values will become zero in the cast"),
    "U410": Rule(_INFO, "Quantised weights were dequantised"),
    "U411": Rule(_ERROR, "Parts of quantised weights are missing"),
    "U412": Rule(_ERROR, "Weights are quantised, and the configuration does not say how"),
    "U413": Rule(_WARNING, "The configuration says that weights are quantised, and none is"),
    "U414": Rule(_ERROR, "Weights are quantised in another way than the configuration says"),
    "U415": Rule(_ERROR, "Weights are quantised that the configuration says are plain"),
    "U430": Rule(_WARNING, "The configuration names another dtype than the tensors have"),
    "U501": Rule(_INFO, "The configuration was edited where it would be read wrongly"),
    "U502": Rule(_WARNING, "The vocabulary was resized"),
    "U503": Rule(_WARNING, "The tokenizer has more tokens than the embedding has rows"),
    "U504": Rule(_ERROR, "The configuration is missing or cannot be read"),
    "U505": Rule(_ERROR, "The configuration has values that mean nothing"),
    "U506": Rule(_WARNING, "The configuration names no model class"),
    "U507": Rule(_ERROR, "The configuration names a model class that does not exist, or of another family"),
    "U508": Rule(_ERROR, "The configuration names no model type"),
    "U509": Rule(_INFO, "The configuration has numbers that are not JSON"),
    "U510": Rule(_ERROR, "The configuration names code that is not in the folder"),
    "U511": Rule(_ERROR, "The vocabulary has other rows than the configuration says"),
    "U513": Rule(_ERROR, "A special token has no row"),
    "U514": Rule(_INFO, "The embedding has more rows than the tokenizer has tokens"),
    "U515": Rule(_INFO, "The cache of generation is switched off"),
    "U517": Rule(_WARNING, "The configuration computes otherwise than that of the base"),
    "U518": Rule(_INFO, "Settings that rarely matter differ from those of the base"),
    "U519": Rule(_WARNING, "One setting stands twice, with different values"),
    "U520": Rule(_WARNING, "Generation does not end where the tokenizer ends a text"),
    "U521": Rule(_INFO, "Files name different first or padding tokens"),
    "U522": Rule(_WARNING, "Answers will not stop: no token that ends a turn ends generation"),
    "U523": Rule(_WARNING, "The chat template of the base is missing"),
    "U524": Rule(_INFO, "There is no generation_config.json"),
    "U525": Rule(_WARNING, "The files of the processor are missing"),
    "U530": Rule(_ERROR, "A shape contradicts the configuration"),
    "U531": Rule(_ERROR, "Tensors are a rank's own parts, flat or empty"),
    "U532": Rule(_ERROR, "Tensors are parts of a tensor-parallel run"),
    "U533": Rule(_ERROR, "Tensors lie transposed"),
    "U535": Rule(_ERROR, "Shapes are not those of the model class"),
    "U536": Rule(_ERROR, "Shapes are not those of the base"),
    "U601": Rule(_WARNING, "No base model was found: configuration and tokenizer are missing"),
    "U602": Rule(_WARNING, "No tokenizer was found"),
    "U603": Rule(_INFO, "The base was found without being named"),
    "U604": Rule(_INFO, "The base named by the training parameters was not used"),
    "U605": Rule(_WARNING, "Files of code belong to the model and were copied, not run"),
    "U606": Rule(_INFO, "A hint to the base leads nowhere"),
    "U607": Rule(_WARNING, "The configuration needs code that was not copied"),
    "U608": Rule(_WARNING, "Links that lead out of the folder were not followed"),
    "U609": Rule(_INFO, "The checkpoint's own tokenizer was taken, not the base's"),
    "U610": Rule(_ERROR, "A file of weights cannot be read"),
    "U611": Rule(_ERROR, "The index names what is not there"),
    "U612": Rule(_ERROR, "The index is not that of the files"),
    "U613": Rule(_ERROR, "A tensor lies in several files"),
    "U614": Rule(_ERROR, "Several files of weights, and no index"),
    "U615": Rule(_INFO, "The index gives another size than the tensors have"),
    "U616": Rule(_WARNING, "One file of weights hides the others"),
    "U617": Rule(_INFO, "One file holds more than 50 GB"),
    "U618": Rule(_INFO, "The weights are pickles of torch"),
    "U619": Rule(_WARNING, "The name of a file makes engines read another format"),
    "U620": Rule(_INFO, "State of training lies in the folder"),
    "U622": Rule(_ERROR, "There are no weights"),
    "U623": Rule(_INFO, "A file of safetensors does not say whose tensors it holds"),
    "U624": Rule(_WARNING, "Tensors are not aligned"),
    "U625": Rule(_INFO, "Only the owner may read the weights"),
    "U626": Rule(_WARNING, "The folder is being written"),
    "U627": Rule(_WARNING, "A small file cannot be read"),
    "U628": Rule(_WARNING, "Links that lead out of the folder were not read"),
    "U629": Rule(_WARNING, "The base is of another family than the one that training names"),
    "U640": Rule(_INFO, "An engine refuses the folder"),
    "U641": Rule(_INFO, "An engine loads the folder and computes otherwise"),
    "U701": Rule(_WARNING, "Verification was switched off"),
    "U702": Rule(_INFO, "The forward pass was not tried"),
    "U703": Rule(_ERROR, "Bytes differ from the source"),
    "U704": Rule(_ERROR, "The structure differs from what the model needs"),
    "U705": Rule(_ERROR, "The forward pass shows a broken model"),
    "U706": Rule(_WARNING, "The loss is far from the base's"),
    "U708": Rule(_WARNING, "The loss on English is no better than guessing blindly"),
    "U710": Rule(_WARNING, "The fingerprint was not taken"),
    "U711": Rule(_ERROR, "The model does not reproduce training's logits"),
    "U712": Rule(_ERROR, "The tokenizer gives other tokens than training's"),
    "U713": Rule(_INFO, "A greedy continuation is another one"),
    "U714": Rule(_INFO, "The fingerprint cannot be compared"),
    "U720": Rule(_WARNING, "The training configuration holds secrets, and was not copied"),
    "U721": Rule(_ERROR, "Tensors are not what training held"),
    "U722": Rule(_INFO, "The record has no digests of tensors in the dtype that they have"),
    "U723": Rule(_WARNING, "The record is that of another model"),
    "U724": Rule(_WARNING, "The record cannot be read"),
    "U725": Rule(_WARNING, "The ranks of the training ran other software"),
    "U726": Rule(_INFO, "Tensors are widened that were rounded before, so the record is left behind"),
    "U801": Rule(_ERROR, "Numbers are not finite"),
    "U802": Rule(_WARNING, "Weights are all zero"),
    "U803": Rule(_WARNING, "A tensor ends in zeros"),
    "U804": Rule(_WARNING, "Weights are the same number everywhere"),
    "U805": Rule(_ERROR, "Numbers that no trained weight has"),
    "U806": Rule(_WARNING, "Tensors are equal bit for bit though nothing ties them"),
    "U807": Rule(_WARNING, "The scale of a tensor does not fit its kind"),
    "U808": Rule(_INFO, "The model looks untrained"),
    "U811": Rule(_WARNING, "Nothing differs from the base"),
    "U812": Rule(_INFO, "The model differs from the base"),
    "U813": Rule(_WARNING, "The model has nothing in common with the base"),
    "U814": Rule(_WARNING, "Tensors have nothing in common with the base's"),
    "U815": Rule(_ERROR, "Tensors hold one another's numbers"),
    "U816": Rule(_ERROR, "Layers are out of order"),
    "U817": Rule(_ERROR, "Experts are out of order"),
    "U818": Rule(_ERROR, "Rows of queries or keys are in the wrong rotary order"),
    "U819": Rule(_ERROR, "A matrix is transposed"),
    "U820": Rule(_ERROR, "Parts of a tensor are in the wrong order"),
    "U821": Rule(_WARNING, "Weights are the base's times a factor"),
    "U822": Rule(_ERROR, "Norm weights are off by one"),
    "U823": Rule(_WARNING, "Frozen layers have changed"),
    "U825": Rule(_WARNING, "Tensors are farther from the base than training takes them"),
    "U901": Rule(_ERROR, "The folder does not hold the model, so it cannot be mended"),
    "U902": Rule(_ERROR, "Several files hold tensors of one name"),
    "U903": Rule(_ERROR, "A file of weights cannot be read"),
    "U904": Rule(_ERROR, "There is no configuration to mend"),
    "U905": Rule(_WARNING, "A tokenizer is missing, and no base gives it"),
    "U906": Rule(_WARNING, "A file beside the model makes engines read the folder in another format"),
    "U907": Rule(_INFO, "Files beside the model are no part of it"),
    "U908": Rule(_INFO, "The folder was mended after it was converted"),
    "U909": Rule(_WARNING, "A small file cannot be read, and nothing takes its place"),
}


def finding(
    code: str,
    *,
    subject: object,
    saw: str,
    expected: str | None = None,
    remedy: str | None = None,
) -> Finding:
    """Return a finding with the severity and title that `RULES` gives its code.

    Raises:
        KeyError: The code is not in `RULES`; every code must be.
    """
    rule = RULES[code]
    return Finding(code, rule.severity, rule.title, str(subject), saw, expected, remedy)
