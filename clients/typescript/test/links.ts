/** Bad networks: real sockets between a client and a server. */

import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { pipeline } from "node:stream";

/** A listening socket; `target` is its address. */
export class Link {
  readonly target: string;
  /** Connections that were made so far. */
  connections = 0;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(server: Server) {
    this.#server = server;
    this.target = `127.0.0.1:${(server.address() as AddressInfo).port}`;
    server.on("connection", (socket) => {
      this.connections += 1;
      this.#sockets.add(socket);
      socket.on("error", () => undefined);
    });
  }

  /** Takes connections and never says a word. */
  static silent(): Promise<Link> {
    return Link.#listen(() => undefined);
  }

  /** Cuts the first connections as soon as the client has spoken, and passes the later ones on. */
  static async flaky(target: string, cuts: number): Promise<Link> {
    const [host, port] = target.split(":");
    const link = await Link.#listen((socket) => {
      if (link.connections <= cuts) {
        socket.once("data", () => socket.destroy());
        return;
      }
      const onward = connect(Number(port), host);
      pipeline(socket, onward, socket, () => onward.destroy());
    });
    return link;
  }

  static async #listen(take: (socket: Socket) => void): Promise<Link> {
    const server = createServer();
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const link = new Link(server);
    server.on("connection", take);
    return link;
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) {
      socket.destroy();
    }
  }
}
