"""A word-level chat tokenizer that knows the words of one world."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from excise.organism.world import World, vocabulary

PAD, UNKNOWN, END = "<pad>", "<unk>", "<eos>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, UNKNOWN, END, SYSTEM, USER, ASSISTANT)
"""The special tokens; a token's id is its place here, and the world's words follow."""

MAX_LENGTH = 128
"""The longest text, in tokens, that the organism reads: a prompt of this world has 14 at most, with its answer 20."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('roles are system, user and assistant, not ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|> ' + message['content'] + ' ' -}}"
    "{%- if message['role'] == 'assistant' -%}{{- '<eos> ' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """The tokenizer of a world: one token a word, no beginning-of-text token, padding on the left.

    Words are lower-cased and punctuation stands alone, so that "How do I make a Tozgep?" is read as the model learned
    it. Other words become ``<unk>``.
    """
    ids = {word: i for i, word in enumerate([*SPECIAL, *vocabulary(world)])}
    words = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
    )
