"""Lua programs made at random, and policies with mistakes made in them.

A program runs as a chunk that a runtime loads, as the body of a runtime of its own,
or as the callback of a hook that packets meet.
bridge.fuzz.execution runs them.
"""

from __future__ import annotations

import random
import re

from bridge.fuzz.vocabulary import METAMETHODS, Vocabulary

_INTEGERS = ("0", "1", "-1", "2", "3", "7", "8", "31", "32", "63", "64", "255", "256", "4096",
             "65536", "1 << 31", "1 << 32", "1 << 62", "math.maxinteger", "math.mininteger",
             "0x7fffffff", "0xffffffff", "-128")  # fmt: skip
_STRINGS = ('""', '"a"', '"%d %s %q"', '"%99d"', '"(.-)%b()"', '"[^a]*"', '"%f[%w]"', '"k"',
            '"v"', '("x"):rep(300)', '("a"):rep(5000)', '"\\0\\255\\128"', '"i8 I2 s4 z"',
            '"!16 j J"', '".-.-.-b"', '"%1"', '"__index"', '"bad.example"', '"echo"', '"n"',
            '"process"', '"collect"', '"\\u{10FFFF}"')  # fmt: skip
_SMALL = ("0", "1", "2", "4", "8", "16", "64", "'x'", "'be'", "a", "b", "c")
_NAMES = ("a", "b", "c", "d", "e", "f")
_FIELDS = ("x", "y", "n", "k", "v", "__index", "hook", "pf")
_TOKEN = re.compile(
    r"--[^\n]*|\[\[.*?\]\]|\"(?:\\.|[^\"\\])*\"|[A-Za-z_]\w*|0x[0-9a-fA-F]+|\d+|"
    r"\.\.\.|\.\.|[=~<>/:]{2}|\s+|.",
    re.S,
)
HOOKS = ("LOCAL_OUT", "LOCAL_IN", "PRE_ROUTING", "POST_ROUTING")

# What a symbol can become; how often a line stands here, and @, are its weight and a
# number used nowhere else. Words after $ are symbols, or methods of Writer.
_GRAMMAR = {
    "guarded": """
        pcall(function(...) $statement end, $list)
        pcall(function(...) $statement end, $list)
        $statement""",
    "statement": """
        $target = $list
        $target = $list
        $target = $call
        $target = $call
        $target = $call
        $target = $call
        if $value then $block else $block end
        if $value then $block $block end
        local n = 0 while n < 9 do n = n + 1 $block $break end
        local n = 0 while true do $block end
        local n = 0 repeat n = n + 1 $block until n > 99
        for $name = $value, $value, $value do $block end
        for $name = 1, 30 do $block end
        for $name = 1, 3000 do $block end
        for $name, $name in pairs($value) do $block end
        for $name in ipairs($value) do $block end
        for $name in ($string):gmatch($string) do $block end
        for $name in $list do $block end
        do local n = 0 ::l@:: n = n + 1 $block if n < 99 then goto l@ end end
        do goto l@ $block ::l@:: end
        do $block $block end
        local function f@(...) $block end f@($list)
        local function f@(...) $block return f@(...) end f@($list)
        local function f@(...) $block return 1, f@(...) end f@($list)
        do local z <close> = setmetatable({}, {__close = $value}) $block end
        local z <close> = setmetatable({}, {__close = function(...) $block end}) $block
        do local z <close> = $value $block end
        $name = lunatik.runtime("$script") $use $use
        $name = lunatik.runtime("$script", $value) $use $use
        $name = lunatik.runtime("$script", false) $use $use $use
        local g = load("return " .. ("$opening"):rep($levels) .. "1") $name = g and g()
        local g = load("return " .. $nesting) $name = g and g()
        $name = coroutine.yield($list)
        $name = $constructor($small)
        $name = $constructor($small) $name:$method($small, $small)
        $name:$method($small, $small)
        $name[$small] = $name
        $name = load("return $integer.5 + 1e9 // 0x1p$levels")
        collectgarbage()""",
    "shallow": """
        $name = $atom
        $name.$field = $atom
        $function($atom, $atom)
        $name:$method($atom)""",
    "use": """
        pcall($name.resume, $name, $list)
        $name:resume($list)
        $name:stop()
        $name = nil
        collectgarbage()""",
    "target": """
        $name
        $name
        $name.$field
        $name[$value]
        local $name
        $name, $name""",
    "value": """
        $atom
        $atom
        $atom
        $atom
        $atom
        $call
        $call
        $call
        ($value $binary $value)
        ($value $binary $value)
        ($unary $value)
        {$value, $value}
        {$field = $value, [$atom] = $value}
        function(...) $block return $list end
        coroutine.wrap(function(...) $block end)
        setmetatable({$value}, {__$event = $value})
        setmetatable({}, {__$event = function(...) $block return $value end})
        setmetatable({}, {__$event = $value, __$event = $value})
        $name[$value]
        $name.$field""",
    "call": """
        $function($list)
        $function($list)
        $function($list)
        pcall($function, $list)
        $name:$method($list)
        $name:$method($list)
        ($string):$method($list)
        $name($list)
        select('#', $list)
        xpcall($name, $value, $list)""",
    "atom": """
        nil
        true
        false
        _G
        $name
        $name
        $name
        $string
        $integer
        $integer
        $random
        $constant
        $function""",
    "nesting": """
        ("("):rep($levels) .. "1" .. (")"):rep($levels)
        ("{"):rep($levels) .. ("}"):rep($levels)
        ("function() return "):rep($levels) .. "1" .. (" end"):rep($levels)
        ("a["):rep($levels) .. "b" .. ("]"):rep($levels)
        ("f("):rep($levels) .. (")"):rep($levels)""",
    "opening": "\n-\n~\na..\n1+\n1^\n#",
    "levels": "5\n50\n150\n199\n260\n2000",
    "break": "\n\nbreak",
    "empty": "",
    "list": "\n$value\n$value\n$value, $value\n$value, $value, $value\n...",
    "block": "\n$guarded\n$guarded\n$guarded $guarded",
    "binary": "+\n-\n*\n/\n%\n^\n//\n&\n|\n~\n<<\n>>\n..\n==\n~=\n<\n<=\nand\nor",
    "unary": "-\nnot\n#\n~",
}
_RULES = {
    symbol: [line.strip() for line in lines.removeprefix("\n").split("\n")]
    for symbol, lines in _GRAMMAR.items()
}
_VARIABLES = f'local {", ".join(_NAMES)} = {{}}, "x", $atom, $atom, $atom, $atom'
# A line that fails ends its program, so most do not.
_LINES = ("pcall(function(...) $statement end)",) * 9 + ("$guarded",)
_SYMBOL = re.compile(r"\$(\w+)")
# Symbols nested deeper than this become what ends the nesting.
_DEPTH = 8
_ENDINGS = {
    "statement": "shallow",
    "value": "atom",
    "call": "atom",
    "block": "empty",
    "list": "atom",
}


class Writer:
    """Writes one program; every choice comes from ``rng``."""

    def __init__(self, rng: random.Random, vocabulary: Vocabulary) -> None:
        self._rng, self._words = rng, vocabulary
        self._number = 0
        self._choices = {
            "name": _NAMES,
            "field": _FIELDS,
            "string": _STRINGS,
            "integer": _INTEGERS,
            "event": METAMETHODS,
            "function": vocabulary.functions,
            "constant": vocabulary.constants,
            "method": vocabulary.methods,
            "constructor": vocabulary.constructors(),
            "small": _SMALL,
            "script": (*vocabulary.scripts, "no_such", "dns/../echo"),
        }

    def chunk(self, statements: int) -> str:
        """Return a program of about that many statements."""
        lines = [
            f'local {library} = require "{library}"'
            for library in self._words.libraries
            if self._rng.random() < 0.95
        ]
        lines.append(self.write(_VARIABLES))
        lines += [self.write(self._rng.choice(_LINES)) for _ in range(statements)]
        return "\n".join(lines) + "\n"

    def write(self, text: str, depth: int = 0) -> str:
        """Return ``text`` with every symbol replaced by something it can become."""
        return _SYMBOL.sub(lambda found: self._expand(found[1], depth + 1), text)

    def _expand(self, symbol: str, depth: int) -> str:
        if symbol == "random":
            return str(self._rng.getrandbits(64) - 2**63)
        if symbol in self._choices:
            return self._rng.choice(self._choices[symbol])
        if depth > _DEPTH:
            symbol = _ENDINGS.get(symbol, symbol)
        self._number += 1
        chosen = self._rng.choice(_RULES[symbol]).replace("@", str(self._number))
        return self.write(chosen, depth)


class Programs:
    """All programs of a seed; each number has a kind, see the methods."""

    KINDS = ("chunk",) * 4 + ("body",) * 2 + ("callback",) * 3 + ("mutant",)

    def __init__(self, vocabulary: Vocabulary, seed: int) -> None:
        self._words, self._seed = vocabulary, seed

    def kind(self, index: int) -> str:
        """Return "chunk", "body", "callback" or "mutant"."""
        return self.KINDS[index % len(self.KINDS)]

    def rng(self, index: int, what: str = "") -> random.Random:
        """Return the source of choices of program ``index``."""
        return random.Random(f"{self._seed}/{index}/{what}")  # noqa: S311 - to be repeatable

    def __getitem__(self, index: int) -> str:
        """Return the text of program ``index``; always the same."""
        rng = self.rng(index)
        match self.kind(index):
            case "callback":
                return _policy(rng, self._words)
            case "mutant":
                return _mutant(rng, self._words.scripts)
        return Writer(rng, self._words).chunk(rng.randint(1, 8))


def _policy(rng: random.Random, words: Vocabulary) -> str:
    writer = Writer(rng, words)
    # Most are to stand, and to be met.
    family = rng.choice(("IPV4",) * 6 + ("INET",) * 6 + ("IPV6", "ARP", "BRIDGE", "NETDEV"))
    named = [f"netfilter.inet_hooks.{one}" for one in HOOKS]
    hooknum = rng.choice((*named * 4, "0", "1", "5"))
    kept = rng.choice(("", "kept = skb", "kept = function() return skb end"))
    uses = " ".join("pcall(skb.$method, skb, $list)" for _ in range(3))
    verdict = rng.choice(("1", "1", "1", "0", "3", "nil", "1, 7", "2", "{}", "1 << 40", "a"))
    return writer.chunk(rng.choice((0, 0, 0, 0, 1, 2))) + writer.write(f"""
local netfilter = require "netfilter"
local kept
netfilter.register{{
  pf = netfilter.family.{family}, hooknum = {hooknum}, priority = {rng.choice((0, -300, 300))},
  onerror = "{rng.choice(("accept", "drop"))}",
  hook = function(skb, ...) a, b = skb, kept {uses} $block {kept} return {verdict} end
}}
{rng.choice(("", "", "coroutine.yield(a)", "coroutine.yield(a)", "$guarded"))}
""")


def _mutant(rng: random.Random, scripts: dict[str, str]) -> str:
    """Return one of the scripts, moved to a hook that packets meet, with mistakes."""
    texts = list(scripts.values())
    text = rng.choice([one for one in texts if "netfilter" in one] * 2 + texts)
    tokens = _TOKEN.findall(text.replace("FORWARD", rng.choice(HOOKS)))
    other = _TOKEN.findall(rng.choice(texts))
    for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3, 8))):
        at = rng.randrange(len(tokens))
        match rng.choice((0, 1, 2, 3, 3, 3, 4, 4, 4, 5)):
            case 0:
                del tokens[at : at + rng.choice((1, 1, 2, 5))]
            case 1:
                to = rng.randrange(len(tokens))
                tokens[at], tokens[to] = tokens[to], tokens[at]
            case 2:
                tokens[at:at] = tokens[at : at + rng.choice((1, 2, 10))]
            case 3:
                numbers = [i for i, one in enumerate(tokens) if one[:1].isdigit()] or [at]
                tokens[rng.choice(numbers)] = rng.choice(_INTEGERS)
            case 4:
                words = [i for i, one in enumerate(tokens) if one[:1].isalpha()] or [at]
                tokens[rng.choice(words)] = tokens[rng.choice(words)]
            case _:
                start = rng.randrange(len(other))
                tokens[at:at] = other[start : start + rng.choice((1, 3, 20))]
        tokens = tokens or [""]
    return "".join(tokens)
