"""Runs several processes of train.py or sample.py on one machine as one run, to try out a pod.

python examples/launch.py --processes=2 --devices=4 train.py --config=configs/avatars.py --workdir=runs/pod

Each process gets --devices virtual CPU devices. On a machine with accelerators you do not need this script: one process
drives them all. Ctrl-C saves and ends all processes. If one fails, this script terminates the others, and kills those
still running after a minute.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

PATIENCE = 60  # seconds for the others to end after one has failed; JAX's heartbeat timeout takes 20 of them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="number of processes (default 2)")
    parser.add_argument("--devices", type=int, default=4, help="virtual devices per process (default 4)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the script and its flags")
    args = parser.parse_args()
    if not args.command or args.processes < 1 or args.devices < 1:
        parser.error("expected a script to run, and at least one process and device: --help has an example")

    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={args.devices}"
    # Many virtual devices on few cores deadlock unless NPROC makes XLA believe that there are more cores.
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": str(2 * args.processes * args.devices), "XLA_FLAGS": flags}
    ours = [f"--coordinator={address}", f"--num_processes={args.processes}"]
    running = [
        subprocess.Popen([sys.executable, *args.command, *ours, f"--process_id={i}"], env=env)
        for i in range(args.processes)
    ]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all processes, which handle it themselves
    signal.signal(signal.SIGTERM, lambda *_: running[0].terminate())  # process 0 informs the others
    codes = wait_for(running)
    for i, code in enumerate(codes):
        if code:
            print(f"process {i} ended with code {code}", file=sys.stderr)
    return next((abs(code) for code in codes if code), 0)


def wait_for(running: list[subprocess.Popen[bytes]]) -> list[int]:
    """Returns all exit codes. Once one process fails, terminates the others, and kills them after ``PATIENCE``."""
    failed = None
    while None in (codes := [process.poll() for process in running]):
        if failed is None and any(codes):
            failed = time.monotonic()
            for process in running:
                process.terminate()
        if failed is not None and time.monotonic() - failed > PATIENCE:
            for process in running:
                process.kill()
        time.sleep(0.1)
    return [code for code in codes if code is not None]


if __name__ == "__main__":
    sys.exit(main())
