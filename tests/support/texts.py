"""Texts that tokenizers disagree about."""

# ruff: noqa: RUF001

from __future__ import annotations

from typing import Final

TEXTS: Final = (
    "",
    " ",
    "Hello, world!",
    "  leading and trailing  ",
    "tabs\tand\nnewlines\r\n\r\n\n  mixed \n  runs",
    " " * 1 + "a" + " " * 2 + "b" + " " * 3 + "c" + " " * 17 + "d" + " " * 100,
    "It's John's, they'LL've DON'T 'tis rock'n'roll",
    "1 12 123 1234 12345 3.14159 1,000,000 0x7fff ½ ² ٣٤٥ 一二三 Ⅷ 𝟘𝟙",
    "naïve café Ångström ñandú œuvre ﬁ e\u0301 n\u0303",
    "日本語のテキストと漢字、かな交じり文。中文字符測試，简体中文。한국어 텍스트 시험",
    "العربية نصٌّ مُشَكَّل עברית עם נִקּוּד हिन्दी पाठ বাংলা ไทยไม่มีช่องว่าง",
    "Привет, как дела? Ελληνικά κείμενα Türkçe İıŞş ẞß",
    "😀 👍🏽 👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 🇩🇪🇫🇷 ❤️ ☃ \U0001f9d1\U0001f3ff\u200d🚀",
    "\x00\x01\x02 \x07\x08\x0b\x0c\x1b[31mred\x1b[0m \x7f \x80\x9f \xa0nbsp \xadshy",
    "\u200b\u200c\u200d\u2028line\u2029para\ufeffbom \ufffd \ufffe \U0010ffff",
    "def f(x: int) -> str:\n    '''doc'''\n\treturn f\"{x!r:>10}\"  # comment\n\n\nclass A(B): pass\n",
    '#include <stdio.h>\nint main(void){for(int i=0;i<10;++i){printf("%d\\n",i);}return 0;}',
    '{"key": [1, 2.5e-10, null, true], "nested": {"a\\u00e9": "\\"quoted\\""}}',
    "SELECT * FROM t WHERE a >= 10 AND b <> 'x'; -- !@#$%^&*()_+-=[]{}|;':\",./<>?`~\\",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "<|im_start|><|im_start|> <|im_end|>x<|im_end |> <|im_end|",
    "<s> </s> <unk> <0x41> <0x0A> ▁ ▁▁ Ġ Ċ Ġhello",
    "https://example.org/a/b?c=d&e=f#g user@example.org C:\\path\\file.txt",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "THE QUICK BROWN FOX jumps OverThe lazyDog camelCase snake_case kebab-case",
    "“quotes” ‘single’ — dash – en … ellipsis • bullet ™ © ® € £ ¥ ∀x∈ℝ: ⌈x⌉ ≤ ∞",
    "Zalgo: H̸̡̪̯ͨ͊̽̅̾̎Ȩ̬̩̾͛ͪ̈́̀́͘ ̶̧̨̱̹̭̯ͧ̾ͬC̷̙̲̝͖ͭ̏ͥͮ͟Oͮ͏̮̪̝͍M̲̖͊̒ͪͩͬ̚̚͜Ȇ̴̟̟͙̞ͩ͌͝S̨̥̫͎̭ͯ̿̔̀ͅ",
)
