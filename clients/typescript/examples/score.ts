/**
 * Scores two answers to one question and prints them, best first:
 *
 *     npm run build && node dist/examples/score.js 127.0.0.1:50051
 *
 * TRIMTAB_TOKEN and TRIMTAB_CA_FILE are read where the server asks for a token or speaks TLS.
 */

import { scoreItem, TrimtabClient, TrimtabError } from "trimtab";

const [target = "127.0.0.1:50051"] = process.argv.slice(2);
const { TRIMTAB_TOKEN: token, TRIMTAB_CA_FILE: caFile } = process.env;

const prompt = "What is a trim tab?";
const answers = ["A small surface that steers the rudder that steers the ship.", "No idea."];

const client = new TrimtabClient(target, {
  ...(token && { token }),
  ...(caFile && { tls: { caFile } }),
  timeoutMs: 10_000,
});
try {
  const { scores } = await client.score({ items: answers.map((completion) => scoreItem({ prompt, completion })) });
  const scored = answers.map((answer, index) => ({ answer, reward: scores[index]?.reward ?? Number.NaN }));
  for (const { answer, reward } of scored.sort((a, b) => b.reward - a.reward)) {
    console.log(`${reward.toFixed(4)}  ${answer}`);
  }
} catch (error) {
  if (!(error instanceof TrimtabError)) {
    throw error;
  }
  console.error(`${error.reason}: ${error.message}`);
  process.exitCode = 1;
} finally {
  client.close();
}
