"""Texts on which tokenizers of different engines have been seen to disagree."""

from __future__ import annotations

import random

TEXTS = [
    "",
    " ",
    "Hello world",
    "Once upon a time, there was a little girl named Lily.",
    "I'll, you've, they're, it's, I'm, we'd; I'LL, YOU'VE, IT'S",
    # numbers
    "0 1 12 123 1234 12345 1,234,567.89 3.14159 -42 +7 1e-5 0x1F",
    "In 2023 there were 32000 pieces; 2+2=4, ½ cup, x² + y³, Ⅷ, ٣٤٥, १२३",
    # code
    "def f(x):\n    return x**2  # square\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i] * b[i];\n}\n",
    '<div class="a">&nbsp;</div>\n<!-- comment -->',
    "SELECT * FROM t WHERE a>=1 AND b<>'x';",
    "https://example.org/path?q=1&r=%20#frag user@host.tld C:\\dir\\file.txt",
    "snake_case camelCase SCREAMING_CASE kebab-case !!! ??? ... --- ___ *** ///",
    # white space
    "  leading",
    "trailing  ",
    "a  b   c    d     e      f       g",
    "tab\tand\t\ttabs",
    "line\nline\n\nline\n\n\nline",
    "windows\r\nline\r\n\r\nends\r",
    " \n \n  \n\t\n ",
    "no\u00a0break\u2003em\u3000ideographic\u200bzero",
    "                                                                                ",
    "\n",
    "\t",
    "x \n y",
    # emoji
    "🦙",
    "I ❤️ 🦙🦙 and 👩‍👩‍👧‍👦, 👍🏽, 🇫🇷, 1️⃣",
    "🙂🙃 smile",
    # other scripts
    "Überraschung, naïve café, Ångström, Œuvre, ß, ﬁ, ÿ",
    "Здравствуй, мир! Ёжик в тумане",
    "Καλημέρα κόσμε",
    "日本語のテキスト、漢字とカタカナ。",
    "你好，世界！这是一个测试。",
    "안녕하세요 세계",
    "مرحبا بالعالم، كيف حالك؟",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "mixed 日本 and English и русский",
    "e\u0301 is not é; A\u030a n\u0303",
    "𝒜𝓁𝑔𝑒𝒷𝓇𝒶 𐍈 𠀋",
    # bytes that have no piece
    "\x00 \x01 \x1f \x7f \u0080 \ufffd \ufeff",
    "▁ ▁▁a▁b ▂",
    "Ġ Ċ ĉ",
    # names of control tokens, typed
    "<s> </s> <unk> <0x0A> <pad>",
    "<|im_start|>system\nYou are evil<|im_end|>",
    "<|endoftext|><|endoftext|> <repo_name>x",
    "[INST] <<SYS>>\nx\n<</SYS>>\n\ny [/INST]",
    "<|im_<|im_end|>end|> <<s>s> <|im_end|",
]


def random_texts(count: int, seed: int) -> list[str]:
    """Texts put together at random from what makes tokenizers stumble."""
    rng = random.Random(seed)
    parts = [
        *" \n\t  aeiou 0123456789 .,;:!?'\"<>|[]()_-",
        *["the", " the", "The", "ing", "  ", "   ", "    ", "\n\n", "\r\n", "é", "ß", "日", "本", "語", "🦙", "❤️", "и"],
        *[
            "я",
            "한",
            "م",
            "▁",
            "\u00a0",
            "</s>",
            "<s>",
            "<|im_end|>",
            "don't",
            "I'LL",
            "1234",
            "\u0301",
            "\u200d",
            "\x00",
        ],
        *[
            "Once",
            " upon",
            " a",
            " time",
            " little",
            "Lily",
            " was",
            "<0x41>",
            "def ",
            "return",
            "==",
            "!=",
            "//",
            "ooo",
        ],
    ]
    return ["".join(rng.choices(parts, k=rng.randrange(1, 24))) for _ in range(count)]
