"""Completion for bash, from the grammar of a command: words, values of options, and what this host has."""

from collections.abc import Callable, Mapping
from string import Template

from manual.grammar import Command, Option

#: Kinds of values, by what the help calls them. Such a kind is a function of the script below.
_BY_METAVAR = {"PATH": "@file", "FILE": "@file", "DIR": "@directory", "DEV": "@device"}

_SCRIPT = Template(
    r"""# Completion of $name for bash. Generated from the command's own parser.

declare -gA _${name}_words=(
$words
)
declare -gA _${name}_operands=(
$operands
)
declare -gA _${name}_values=(
$values
)

# What is possible for a kind of value, or the words themselves.
_${name}_possible() {
    local kind=$$1 word=$$2 socket=$$3
    case $$kind in
    @file) compgen -f -- "$$word" ;;
    @directory) compgen -d -- "$$word" ;;
    @device) compgen -W "$$(ls /sys/class/net)" -- "$$word" ;;
    @flow)
        kind=$$(qos2 $${socket:+--socket "$$socket"} flows --json 2>/dev/null |
            sed -n 's/^ *"id": "\(0x[0-9a-f]*\)".*/\1/p')
        compgen -W "$$kind" -- "$$word"
        ;;
    @command) compgen -c -- "$$word" ;;
    *) compgen -W "$$kind" -- "$$word" ;;
    esac
}

_$name() {
    local command=$name word=$${COMP_WORDS[COMP_CWORD]} given option= socket= kind= index
    for ((index = 1; index < COMP_CWORD; index++)); do
        given=$${COMP_WORDS[index]}
        if [[ -n $$option ]]; then
            [[ $$option != --socket ]] || socket=$$given
            option=
        elif [[ -n $${_${name}_values["$$command $$given"]+set} ]]; then
            option=$$given
        elif [[ -n $${_${name}_words["$$command $$given"]+set} ]]; then
            command+=" $$given"
        elif [[ $${_${name}_operands["$$command"]} == @command && ( $$given == -- || $$given != -* ) ]]; then
            # From here on it is another command's line.
            [[ $$given != -- ]] || ((index++))
            if declare -F _command_offset >/dev/null; then
                _command_offset "$$index"
                return
            fi
            ((index < COMP_CWORD)) && kind=@file || kind=@command
            break
        fi
    done
    if [[ -z $$kind ]]; then
        if [[ -n $$option ]]; then
            kind=$${_${name}_values["$$command $$option"]}
        elif [[ $$word == -* ]]; then
            kind=$${_${name}_words["$$command"]}
        else
            kind=$${_${name}_operands["$$command"]}
        fi
    fi
    # Only then bash puts a slash behind a folder; where it does not complete, as in a test, the option is refused.
    [[ $$kind != @file && $$kind != @directory ]] || compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(_${name}_possible "$$kind" "$$word" "$$socket")
}

complete -F _$name $name
"""
)

#: Words, or a kind as `@flow`, by the converters of a command's own.
Kinds = Mapping[Callable[[str], object] | None, str]


def script(root: Command, kinds: Kinds) -> str:
    """The script that bash reads when it first completes the command."""
    words, operands, values = {}, {}, {}
    for command in root.walk():
        key = " ".join(command.words)
        words[key] = " ".join(name for option in command.options for name in option.names)
        operands[key] = " ".join([each.words[-1] for each in command.commands] or _operands(command, kinds))
        for option in command.options:
            for name in option.names if option.metavar else ():
                values[f"{key} {name}"] = _kind(option, kinds)
    return _SCRIPT.substitute(name=root.words[0], words=_table(words), operands=_table(operands), values=_table(values))


def _operands(command: Command, kinds: Kinds) -> list[str]:
    return list(dict.fromkeys("@command" if each.rest else _kind(each, kinds) for each in command.operands))[:1]


def _kind(option: Option, kinds: Kinds) -> str:
    if option.choices:
        return " ".join(option.choices)
    if option.convert in kinds:
        return kinds[option.convert]
    return _BY_METAVAR.get(option.metavar, "")


def _table(entries: Mapping[str, str]) -> str:
    return "\n".join(f'    ["{key}"]="{value}"' for key, value in entries.items())
