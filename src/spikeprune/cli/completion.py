"""Print a script that completes commands, recipes, keys and methods in bash or zsh."""

from collections.abc import Sequence

from spikeprune.cli._arguments import Parser
from spikeprune.core.errors import unknown

_BASH = """_spikeprune() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands} --help --version" -- "$word"))
    elif [ "$before" = "--method" ]; then
        COMPREPLY=($(compgen -W "{methods}" -- "$word"))
    elif [ "$before" = "--model" ]; then
        COMPREPLY=($(compgen -W "{models}" -- "$word"))
    elif [ "$before" = "--data.name" ]; then
        COMPREPLY=($(compgen -W "{datasets}" -- "$word"))
    else
        case "${{COMP_WORDS[1]}}" in
            run|sweep|config)
                if [ "$COMP_CWORD" -eq 2 ]; then
                    COMPREPLY=($(compgen -W "{recipes}" -- "$word") $(compgen -f -- "$word"))
                else
                    COMPREPLY=($(compgen -W "{keys}" -- "$word"))
                fi ;;
            list) COMPREPLY=($(compgen -W "methods models datasets recipes pretrained" -- "$word")) ;;
            completion) COMPREPLY=($(compgen -W "bash zsh" -- "$word")) ;;
            *) COMPREPLY=($(compgen -f -- "$word")) ;;
        esac
    fi
}}
complete -o filenames -F _spikeprune spikeprune
"""
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
_SHELLS = ("bash", "zsh")


def main(arguments: Sequence[str]) -> int:
    parser = Parser(
        "completion",
        f'{__doc__}\n\nIn ~/.bashrc or ~/.zshrc: eval "$(spikeprune completion bash)"',
        ["completion bash", "completion zsh"],
    )
    parser.add_argument("shell", metavar="bash|zsh", help="the shell that reads it")
    options = parser.parse_args(arguments)
    if options.shell not in _SHELLS:
        raise unknown("shell", options.shell, _SHELLS)
    print((_ZSH if options.shell == "zsh" else "") + _BASH.format(**_words()), end="")
    return 0


def _words() -> dict[str, str]:
    from spikeprune import data, zoo
    from spikeprune.cli.main import commands
    from spikeprune.lab.recipe import describe_keys, shipped
    from spikeprune.lab.recipe.help import option
    from spikeprune.methods import names as methods

    found = {
        "commands": commands(),
        "methods": methods(),
        "models": zoo.names(),
        "datasets": data.names(),
        "recipes": shipped(),
        "keys": [f"--{option(key)}" for key, _, _ in describe_keys()],
    }
    return {kind: " ".join(names) for kind, names in found.items()}
