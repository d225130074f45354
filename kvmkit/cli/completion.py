"""``kvmkit completion``: scripts that complete commands, options and values.

They are made from the same tables the parser reads, so they cannot fall
behind. Formats: bash(1) "Programmable Completion", zshcompsys(1) ``_arguments``,
fish's ``complete`` builtin.
"""

from __future__ import annotations

from kvmkit.cli.main import COMMANDS, module_of
from kvmkit.cli.options import Command, Option, closest
from kvmkit.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMAND", "main"]

COMMAND = Command(
    "kvmkit completion",
    "Print a completion script for your shell.",
    words="bash|zsh|fish",
    most_words=1,
    notes="""
To use it:   source <(kvmkit completion bash)
To keep it:  kvmkit completion bash > /etc/bash_completion.d/kvmkit
             kvmkit completion zsh  > "${fpath[1]}/_kvmkit"
             kvmkit completion fish > ~/.config/fish/completions/kvmkit.fish
""",
)


def main(arguments: Sequence[str]) -> int:
    """Print the script for the named shell; 0. Raises UsageError for another shell."""
    parsed = COMMAND.parse(arguments)
    if parsed is None:
        return 0
    shells = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    shell = parsed.words[0] if parsed.words else ""
    if shell not in shells:
        raise UsageError(
            f"expected a shell, one of {', '.join(shells)}, found {shell!r}",
            closest(shell, shells, "did you mean '{}'?") or "for example: kvmkit completion bash",
        )
    print(shells[shell]())
    return 0


def _tables() -> dict[str, dict[str, Command]]:
    """Per command its own table under "", or one table per word that follows it."""
    tables = {}
    for name in COMMANDS:
        module = __import__(module_of(name), fromlist=["COMMAND"])
        inner: dict[str, Command] = getattr(module, "SUBCOMMANDS", {})
        tables[name] = inner or {"": module.COMMAND}
    return tables


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _first_line(option: Option) -> str:
    return option.text.split("\n")[0].split(" (")[0]


_NAMES = "kvmkit list --names 2>/dev/null"
"""What prints the names of running VMs, in every shell."""


def _bash() -> str:
    options, values, inner, vms = [], [], [], ["-"]
    for name, tables in _tables().items():
        if "" not in tables:
            inner.append(f"        {name}) words={_quote(' '.join(tables))} ;;")
        for sub, table in tables.items():
            place = f"{name} {sub}".strip()
            known = " ".join(known for option in table.options for known in option.names)
            if table.complete == "vm":
                vms.append(place)
            options.append(f"        {_quote(place)}) options={_quote(known)} ;;")
            for option in table.options:
                if option.metavar:
                    case = " | ".join(_quote(f"{place} {known}") for known in option.names)
                    reply = _bash_values(option)
                    values.append(f"        {case})\n            {reply}\n            return ;;")
    return _BASH % (
        " ".join(COMMANDS),
        "\n".join(inner),
        "\n".join(options),
        "\n".join(values),
        " | ".join(map(_quote, vms)),
    )


def _bash_values(option: Option) -> str:
    if option.complete == "vm":
        return f'COMPREPLY=($(compgen -W "$({_NAMES})" -- "$word"))'
    if option.choices:
        return f'COMPREPLY=($(compgen -W {_quote(" ".join(option.choices))} -- "$word"))'
    return "compopt -o default" if option.complete == "file" else ":"


_BASH = """\
# kvmkit completion for bash; made by: kvmkit completion bash
_kvmkit() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
    local place=${COMP_WORDS[1]} words='' options='' index
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W '%s --help --version' -- "$word"))
        return
    fi
    for ((index = 2; index < COMP_CWORD; index++)); do
        if [[ ${COMP_WORDS[index]} == -- ]]; then return; fi
    done
    case $place in
%s
    esac
    if [[ -n $words ]]; then
        if ((COMP_CWORD == 2)); then
            COMPREPLY=($(compgen -W "$words --help" -- "$word"))
            return
        fi
        place="$place ${COMP_WORDS[2]}"
    fi
    case $place in
%s
    esac
    case "$place $before" in
%s
    esac
    if [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$word"))
    else
        case $place in
        %s) COMPREPLY=($(compgen -W "$(kvmkit list --names 2>/dev/null)" -- "$word")) ;;
        *) compopt -o default ;;
        esac
    fi
}
complete -F _kvmkit kvmkit"""


def _zsh() -> str:
    cases = []
    for name, tables in _tables().items():
        for sub, table in tables.items():
            specs = " \\\n            ".join(_zsh_option(option) for option in table.options)
            place = _quote(f"{name} {sub}".strip())
            cases.append(
                f"        {place})\n        _arguments -s -S \\\n            {specs} \\\n"
                f"            {_zsh_words(table)} ;;"
            )
    inner = [
        f"        {name}) words_of={_quote(' '.join(tables))} ;;"
        for name, tables in _tables().items()
        if "" not in tables
    ]
    commands = " ".join(_quote(f"{name}:{text}") for name, text in COMMANDS.items())
    return _ZSH % (commands, "\n".join(inner), "\n".join(cases))


def _zsh_words(table: Command) -> str:
    return "'*:VM:_kvmkit_vms'" if table.complete == "vm" else "'*:file:_files'"


def _zsh_option(option: Option) -> str:
    text = _first_line(option).replace("[", "(").replace("]", ")").replace(":", " ")
    names = option.names[0] if len(option.names) == 1 else "{" + ",".join(option.names) + "}"
    repeat = "*" if option.repeat else f"({' '.join(option.names)})"
    action = ""
    if option.metavar:
        known = f"({' '.join(option.choices)})" if option.choices else ""
        known = {"file": "_files", "vm": "_kvmkit_vms"}.get(option.complete, known)
        action = f":{option.metavar}:{known}"
    equals = "=" if option.metavar and len(option.names) == 1 else ""
    return f"{_quote(repeat)}{names}{equals}{_quote(f'[{text}]{action}')}"


_ZSH = """\
#compdef kvmkit
# kvmkit completion for zsh; made by: kvmkit completion zsh
_kvmkit_vms() {
    compadd -- ${(f)"$(kvmkit list --names 2>/dev/null)"}
}
_kvmkit() {
    local place=$words[2] words_of=''
    local -a commands=(%s)
    if ((CURRENT == 2)); then
        _describe command commands
        return
    fi
    case $place in
%s
    esac
    if [[ -n $words_of ]]; then
        if ((CURRENT == 3)); then
            compadd -- ${=words_of}
            return
        fi
        place="$place $words[3]"
        shift words
        ((CURRENT--))
    fi
    shift words
    ((CURRENT--))
    case $place in
%s
    esac
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _kvmkit "$@"
else
    compdef _kvmkit kvmkit
fi"""


def _fish() -> str:
    lines = [
        "# kvmkit completion for fish; made by: kvmkit completion fish",
        "complete -c kvmkit -n __fish_use_subcommand -f",
    ]
    for name, text in COMMANDS.items():
        lines.append(f"complete -c kvmkit -n __fish_use_subcommand -a {name} -d {_quote(text)}")
    for name, tables in _tables().items():
        seen = f"__fish_seen_subcommand_from {name}"
        if "" not in tables:
            others = f"{seen}; and not __fish_seen_subcommand_from {' '.join(tables)}"
            lines.append(f"complete -c kvmkit -f -n {_quote(others)} -a {_quote(' '.join(tables))}")
        for sub, table in tables.items():
            where = f"{seen}; and __fish_seen_subcommand_from {sub}" if sub else seen
            lines += [_fish_option(where, option) for option in table.options]
            if table.complete == "vm":
                lines.append(f"complete -c kvmkit -f -n {_quote(where)} -a '({_NAMES})'")
    return "\n".join(lines)


def _fish_option(where: str, option: Option) -> str:
    parts = [f"complete -c kvmkit -n {_quote(where)}"]
    parts += [
        f"-l {known[2:]}" if known.startswith("--") else f"-s {known[1:]}" for known in option.names
    ]
    if option.metavar:
        parts.append("-r" if option.complete == "file" else "-x")
    if option.complete == "vm":
        parts.append(f"-a '({_NAMES})'")
    if option.choices:
        parts.append(f"-a {_quote(' '.join(option.choices))}")
    return " ".join([*parts, f"-d {_quote(_first_line(option))}"])
