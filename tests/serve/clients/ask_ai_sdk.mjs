// Asks as an application in TypeScript does, with Vercel's AI SDK, and prints what it got.
// Arguments: the server's URL, and an image as base64. Run by tests/serve/test_serving_clients.py.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText } from "ai";
import { z } from "zod";

const [baseURL, image] = process.argv.slice(-2);
const provider = createOpenAICompatible({
  name: "dimple", baseURL, apiKey: "secret", supportsStructuredOutputs: true, includeUsage: true,
});
const model = provider("forms");
const content = [
  { type: "file", mediaType: "image/png", data: Buffer.from(image, "base64") },
  { type: "text", text: "Give the form as JSON." },
];
const messages = [{ role: "user", content }];

const whole = await generateText({ model, messages });
let streamed = "";
for await (const piece of streamText({ model, messages }).textStream) streamed += piece;
const question = { role: "user", content: "What is the floor?" };
const second = await generateText({ model, messages: [...messages, ...whole.response.messages, question] });
const schema = z.object({ price: z.number().int().min(0).max(9999), floor: z.number().int().min(0).max(99) });
const parsed = await generateText({ model, messages, output: Output.object({ schema }) });
const tools = { save: { description: "Saves the form.", inputSchema: schema } };
const called = await generateText({ model, messages, tools, toolChoice: "required" });
console.log(JSON.stringify({
  whole: whole.text, streamed, second: second.text, parsed: parsed.output, call: called.toolCalls[0].input,
  tokens: whole.usage.inputTokens,
}));
