"""Scripts that complete commands and options in a shell. They know no names of tasks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final

_Words = dict[str, list[str]]


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """Returns the script for a shell; it is made of the parser, so that it lacks nothing."""
    return SHELLS[shell](_words(parser))


def _words(parser: argparse.ArgumentParser) -> _Words:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return {
                name: sorted(
                    option
                    for argument in command._actions
                    for option in argument.option_strings
                    if option.startswith("--")
                )
                for name, command in action.choices.items()
            }
    return {}


def _bash(words: _Words) -> str:
    cases = "\n".join(f'    {name}) words="{" ".join(opts)}" ;;' for name, opts in words.items())
    return f"""\
# Load it with: eval "$(pyncette completion bash)"
_pyncette() {{
  local word command="" words i
  for ((i = 1; i < COMP_CWORD; i++)); do
    word="${{COMP_WORDS[i]}}"
    case "$word" in
      --app|--url|--table) ((i++)) ;;
      -*) ;;
      *) command="$word"; break ;;
    esac
  done
  case "$command" in
{cases}
    *) words="--app --url --table --json --utc --yes --debug {" ".join(words)}" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _pyncette pyncette
"""


def _zsh(words: _Words) -> str:
    return "autoload -U +X bashcompinit && bashcompinit\n" + _bash(words).replace(
        "completion bash", "completion zsh"
    )


def _fish(words: _Words) -> str:
    names = " ".join(words)
    lines = [
        "# Load it with: pyncette completion fish | source",
        f'complete -c pyncette -n "not __fish_seen_subcommand_from {names}" -f -a "{names}"',
    ]
    for name, options in words.items():
        lines += [
            f'complete -c pyncette -n "__fish_seen_subcommand_from {name}" -l {option[2:]}'
            for option in options
        ]
    return "\n".join(lines) + "\n"


SHELLS: Final[dict[str, Callable[[_Words], str]]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
"""Makes the script of each shell."""
