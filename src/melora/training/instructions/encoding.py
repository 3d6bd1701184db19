"""From a row's pieces to token ids and labels."""

from typing import Any

from ...errors import MeloraError
from ..data import Split
from ..tasks.base import Encoded
from .formats import Piece, pieces
from .spec import IGNORED, InstructionData


def encode_rows(split: Split, tokenizer: Any, spec: InstructionData) -> Encoded:
    """Token ids and labels of every row, cut at max_length.

    A row that is cut ends without the end token: the answer is not over there.

    Raises:
        MeloraError: nothing to learn is left of a row, unless the recipe says to leave such rows out (or nothing is
            left of all of them).
    """
    lead = leading_ids(tokenizer)
    examples, cut, dropped = [], 0, []
    for index, row in enumerate(split.labels):
        parts = pieces(row, spec, tokenizer, split.row(index))
        ids, answer = token_ids(parts, tokenizer, lead)
        labels = [token if spec.loss == "all" or said else IGNORED for token, said in zip(ids, answer, strict=True)]
        cut += len(ids) > spec.max_length
        ids, labels = ids[: spec.max_length], labels[: spec.max_length]
        # The first token is predicted from nothing, so that its label never counts.
        if any(label != IGNORED for label in labels[1:]):
            examples.append({"input_ids": ids, "labels": labels})
        else:
            dropped.append(index)
    if dropped and (not spec.drop_cut or not examples):
        raise MeloraError(
            f"{split.row(dropped[0])}: its prompt fills data.max_length={spec.max_length} tokens, so that nothing of "
            f"the answer is left to learn ({len(dropped)} such rows of {len(split)}); raise data.max_length"
            + ("" if spec.drop_cut else ", or leave them out with data.drop_cut=true")
        )
    return Encoded(examples, cut, len(dropped))


def leading_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts in front of every text: its begin token, or nothing."""
    ids = tokenizer("")["input_ids"]
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


def token_ids(parts: list[Piece], tokenizer: Any, lead: list[int]) -> tuple[list[int], list[bool]]:
    """(token ids, for each whether it belongs to an answer).

    The text is tokenised whole, as it is when it is given to a model. Where a token would straddle the border between
    prompt and answer, the pieces are tokenised one by one: at generation the prompt ends there too.
    """
    text = "".join(part.text for part in parts)
    begin = [] if tokenizer.bos_token and text.startswith(tokenizer.bos_token) else lead
    whole = _plain(text, tokenizer)
    borders, upto = [0], ""
    for part in parts:
        upto += part.text
        ids = whole if len(upto) == len(text) else _plain(upto, tokenizer)
        if whole[: len(ids)] != ids:
            split = [_plain(piece.text, tokenizer) for piece in parts]
            whole = [token for ids in split for token in ids]
            borders = [sum(map(len, split[:count])) for count in range(len(parts) + 1)]
            break
        borders.append(len(ids))
    answer = [False] * len(begin)
    for part, start, stop in zip(parts, borders[:-1], borders[1:], strict=True):
        answer += [part.answer] * (stop - start)
    return [*begin, *whole], answer


def prompt_ids(text: str, tokenizer: Any, lead: list[int]) -> list[int]:
    """Token ids of a prompt, the same as it has in front of an answer."""
    begin = [] if tokenizer.bos_token and text.startswith(tokenizer.bos_token) else lead
    return [*begin, *_plain(text, tokenizer)]


def _plain(text: str, tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def give_pad_token(tokenizer: Any) -> None:
    """Padding must have a token, and not the end token if there is another.

    Labels here are set token by token and never by looking for padding, so training is right either way; but whoever
    loads the saved tokenizer into a collator that masks padding would mask the end of every answer too.
    """
    if tokenizer.pad_token is not None and tokenizer.pad_token != tokenizer.eos_token:
        return
    unknown = tokenizer.unk_token
    tokenizer.pad_token = unknown if unknown is not None and unknown != tokenizer.eos_token else tokenizer.eos_token
