# bash completion for mailproxy
_mailproxy() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    COMPREPLY=()
    if [[ ${COMP_WORDS[1]} == demo && $COMP_CWORD -gt 1 ]]; then
        case $prev in
            --directory) mapfile -t COMPREPLY < <(compgen -d -- "$cur") ;;
            *) mapfile -t COMPREPLY < <(compgen -W "--check --directory --help" -- "$cur") ;;
        esac
        return
    fi
    if [[ ${COMP_WORDS[1]} == certificates && $COMP_CWORD -gt 1 ]]; then
        case $prev in
            --warn | --name | -g) ;;
            -c) mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
            -p) mapfile -t COMPREPLY < <(compgen -d -- "$cur") ;;
            *) mapfile -t COMPREPLY < <(compgen -W "-p -c -g --json --warn --name --help" -- "$cur") ;;
        esac
        return
    fi
    if [[ ${COMP_WORDS[1]} == help && $COMP_CWORD -eq 2 ]]; then
        mapfile -t COMPREPLY < <(compgen -W "certificates demo" -- "$cur")
        return
    fi
    case $prev in
        -s) mapfile -t COMPREPLY < <(compgen -W "stop quit reload reopen" -- "$cur") ;;
        -c) mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
        -e) mapfile -t COMPREPLY < <(compgen -W stderr -- "$cur"; compgen -f -- "$cur") ;;
        -p) mapfile -t COMPREPLY < <(compgen -d -- "$cur") ;;
        -g) ;;
        *)
            mapfile -t COMPREPLY < <(
                compgen -W "-? -h -v -V -t -T -q -s -p -e -c -g --dump-json --list-directives --help --version" -- "$cur"
                [[ $COMP_CWORD -eq 1 ]] && compgen -W "certificates demo help version" -- "$cur"
            )
            ;;
    esac
}
complete -o filenames -F _mailproxy mailproxy
