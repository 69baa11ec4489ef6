"""The completion of a shell: `eval "$(mpp completion bash)"`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mpp.config.bounds import Options, option_name
from mpp.config.command_line import flattened
from mpp.config.words import SHORT
from mpp.errors import UserError

_BASH = """_mpp() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} words
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
    [ "$COMP_CWORD" -eq 1 ] && words="{names}"
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    case $word in -*) ;; *) [ "$COMP_CWORD" -gt 1 ] && COMPREPLY+=($(compgen -f -- "$word")) ;; esac
}}
complete -o filenames -F _mpp mpp"""
_SHELLS = {"bash": "", "zsh": "autoload -U +X bashcompinit && bashcompinit\n"}


def completion(shell: str, commands: Mapping[str, type[Options]], others: Iterable[str]) -> str:
    """A script for bash or zsh that completes commands, their options and files. Raises UserError for other shells."""
    if shell not in _SHELLS:
        raise UserError(f"mpp completion {shell}".strip() + ": name a shell, bash or zsh")
    cases = []
    for name, kind in commands.items():
        known = flattened(kind())
        short = [word for word, long in SHORT.items() if long in known and word not in known]
        cases.append(f'        {name}) words="{" ".join(map(option_name, [*known, *short]))}" ;;')
    return _SHELLS[shell] + _BASH.format(cases="\n".join(cases), names=" ".join([*commands, *others]))
