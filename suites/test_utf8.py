"""Gate 4: text beyond ASCII: whole characters only, however the tokens split them."""

from collections.abc import Sequence
from typing import Any

import pytest

from harness.clients import EngineClient
from harness.clients.http import told_ids
from harness.clients.native import NativeClient
from harness.judges.stream import read_or_nothing
from harness.launch import RunningEngine
from harness.observation import Exchange, Observe

TEXTS: dict[str, tuple[str, ...]] = {
    "emoji": (
        "😀 😃 😄",
        "👩‍🚀 👨‍🔧 🧑‍🌾",
        "👨‍👩‍👧‍👦 👩‍❤️‍👨",
        "👍🏽 👋🏿 ✊🏻",
        "🏳️‍🌈 🏴‍☠️",
        "🇫🇷 🇯🇵 🇧🇷",
        "1️⃣ 2️⃣ #️⃣",
        "🤷🏾‍♀️ 🙋🏼‍♂️",
        "🚀🚀🚀 🌍",
        "🐻‍❄️ 🐈‍⬛",
    ),
    "cjk": (
        "日本語の文章です。",
        "ひらがなとカタカナ",
        "今天天气很好。",
        "我喜欢读书和写字。",
        "漢字、仮名、ローマ字",
        "한국어 문장입니다.",
        "서울의 봄은 따뜻하다",
        "𠮷野家 𩸽",
        "「引用」と（括弧）",
    ),
    "arabic": (
        "مرحبا بالعالم",
        "اللغة العربية جميلة",
        "السَّلَامُ عَلَيْكُمْ",
        "كتاب، قلم، ورقة",
        "١٢٣٤٥ أرقام",
        "هل أنت بخير؟",
        "فارسی: پژوهش گچ",
        "اردو زبان",
        "صباح الخير يا صديقي",
    ),
    "hindi": (
        "नमस्ते दुनिया",
        "हिन्दी भाषा सुंदर है",
        "क्षत्रिय ज्ञान श्री",
        "मैं किताब पढ़ता हूँ।",
        "भारत की राजधानी दिल्ली",
        "१२३ अंक",
        "स्त्री प्रार्थना",
        "ॐ शान्ति शान्ति",
        "आप कैसे हैं?",
    ),
    "thai": (
        "สวัสดีชาวโลก",
        "ภาษาไทยสวยงาม",
        "น้ำตกใหญ่มาก",
        "กรุงเทพมหานคร",
        "๑๒๓ ตัวเลข",
        "ผู้ใหญ่ที่ดี",
        "คุณสบายดีไหม",
        "ขอบคุณครับ",
        "เชียงใหม่",
    ),
    "combining": (
        "e\u0301 a\u0300 n\u0303 o\u0308",
        "Z\u0351\u036b\u0343a\u0363l\u0349g\u034eo",
        "cafe\u0301 nai\u0308ve",
        "a\u0328\u0301 ɔ\u0302",
        "\u1100\u1161\u11a8 \u1112\u1161\u11ab",
        "Việt Nam: tiếng Việt",
        "y\u0306 q\u0307 x\u0323",
        "∑\u20d7 v\u20d7",
        "שָׁלוֹם עוֹלָם",
    ),
    "mixed": (
        "Hello 世界 🌏 مرحبا",
        "naïve café — «déjà vu» 😊",
        "π ≈ 3.14159, ∞ ≠ ∅",
        "Ελληνικά и русский",
        "Tab\tand\nnewline ☃",
        "日本 🇯🇵 नमस्ते ไทย",
        "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝕞𝕒𝕥𝕙",
        "zero\u200bwidth \u200fRTL\u200e",
        "½ ⅔ ¾ № ™ ©",
    ),
}
NATIVE = NativeClient.kind
SPLIT = "🦑🧿🪐🫠🩻🪬"
GREEDY: dict[str, Any] = {"temperature": 0.0, "seed": 1}
WHOLE_EVERY = 3


@pytest.mark.check(
    "G4-UTF8-EMOJI",
    "G4-UTF8-SCRIPTS",
    "G4-UTF8-VALID",
    "G4-UTF8-NOREPLACEMENT",
    "G4-UTF8-STREAM-EQUALS-FULL",
)
def test_texts_come_through(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    cases = [(group, text) for group, texts in TEXTS.items() for text in texts]
    requests = [{**GREEDY, "prompt": copying(text), "max_tokens": 12} for _, text in cases]
    streams = [client.execute(**request) for request in requests]
    seen: dict[str, Any] = {}
    if client.kind == NATIVE:
        tokenized = [client.tokenize(text) for _, text in cases]
        seen = {
            "tokenized": tokenized,
            "round_trips": [client.detokenize(told_ids(one)) for one in tokenized],
            "detokenized": [client.detokenize(read_or_nothing(one).ids) for one in streams],
        }
    observe(
        groups=[group for group, _ in cases],
        streams=streams,
        whole=[client.whole(**request) for request in requests[::WHOLE_EVERY]],
        **seen,
    )


@pytest.mark.check("G4-UTF8-SPLIT", "G4-UTF8-BUFFER", "G4-UTF8-VALID", "G4-UTF8-NOREPLACEMENT")
def test_characters_split_over_tokens(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    requests: list[dict[str, Any]] = [
        {**GREEDY, "prompt": copying(character * 3), "max_tokens": 12} for character in SPLIT
    ]
    requests += [
        {"prompt": "🦑 日本", "max_tokens": 48, "temperature": 2.0, "seed": n} for n in (1, 2)
    ]
    streams = [client.execute(**request) for request in requests]
    if client.kind == NATIVE:
        observe(**split_by_token(client, requests, streams))
    else:
        observe(streams=streams)


def split_by_token(
    client: EngineClient, requests: Sequence[dict[str, Any]], streams: Sequence[Exchange]
) -> dict[str, Any]:
    """Where each token ends is known: answers cut within a character, and resumed there."""
    told = [read_or_nothing(seen).tokens for seen in streams]
    silent = sorted({token.token_id for tokens in told for token in tokens if token.text == ""})
    cut, resumed = [], []
    for request, tokens in zip(requests, told, strict=True):
        texts = [token.text for token in tokens]
        if "" in texts:
            cut.append(client.execute(**{**request, "max_tokens": texts.index("") + 1}))
    for character in SPLIT:
        ids = told_ids(client.tokenize(copying(character * 3) + character, add_special=True))
        resumed.append(client.execute(**GREEDY, prompt_ids=ids[:-1], max_tokens=6))
    every = [*streams, *cut, *resumed]
    return {
        "streams": every,
        "cut": cut,
        "detokenized": [client.detokenize(read_or_nothing(seen).ids) for seen in every],
        "singles": [client.detokenize([token_id]) for token_id in silent],
    }


def copying(text: str) -> str:
    """A prompt that a small model goes on with the text itself."""
    return f"{text} | {text} | {text} |"
