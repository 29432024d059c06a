/**
 * Keepalive sockets: a sandbox that is not detached ends when this process ends.
 *
 * The supervisor of a sandbox holds one end. The kernel closes the other one when this process ends
 * for any reason, SIGKILL included.
 */

/** This process's end of a keepalive socket. */
export class Bond {
  /** @param {import("node:net").Socket} socket */
  constructor(socket) {
    this.socket = socket;
    /** True while the sandbox depends on this process. */
    this.isHeld = true;
    // A broken socket tells that the sandbox has ended, which its calls report.
    socket.on("error", () => {});
    socket.on("close", () => {
      this.isHeld = false;
    });
    socket.unref();
    socket.resume();
  }

  /** Lets the sandbox go on without this process. @returns {Promise<void>} */
  release() {
    this.isHeld = false;
    return new Promise((resolve) => {
      this.socket.once("close", () => resolve());
      if (this.socket.destroyed) resolve();
      this.socket.ref();
      this.socket.write("d", () => this.socket.destroy());
    });
  }

  /** Closes the socket: the sandbox is stopped, unless it was released. */
  close() {
    this.isHeld = false;
    this.socket.destroy();
  }
}
