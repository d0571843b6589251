# to be sourced: parts of the tests, which run one after the other or side by side
part_of() { # test file: the part that it is of
    case ${1#tests/test_} in
    batch.* | checksum* | coalesce* | frame* | fuzz_offloads* | net_hdr* | offload_* | segment* | toeplitz*)
        echo kernels ;;
    bell* | dirty_log* | dma* | hostile_d* | inflight* | memory* | models* | queues* | region* | ring* | run.* | stress* | truncation* | unpop* | worker*)
        echo rings ;;
    vhost*)
        echo vhost ;;
    capture* | cli* | iperf* | kernel* | net_any* | net_command* | net_kernel* | net_midstream* | net_supervised* | net_threads* | netns* | readme* | tap* | top_command*)
        echo network ;;
    *)
        echo devices ;;
    esac
}
