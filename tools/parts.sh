# to be sourced: the test files, and parts of them, which run one after the other or side by side
test_files() { find tests -name 'test_*.py' | sort; }

part_of() { # test file: the part that it is of
    case ${1#tests/} in
    # what has the kernel behind it, or starts the command
    cli/* | net/test_net_kernel* | net/test_net_midstream* | offload/test_capture* | offload/test_kernel* | ports/test_tap* | test_readme*)
        echo network ;;
    guests/* | vhost_user/*)
        echo vhost ;;
    offload/*)
        echo kernels ;;
    event/* | memory/* | virtqueue/*)
        echo rings ;;
    *)
        echo devices ;;
    esac
}
