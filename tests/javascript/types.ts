// Compiles only if the types that openapi-typescript makes of the OpenAPI document are exact.
import type { components, operations, webhooks } from "./openapi";

type Bodies = components["schemas"];
type Answer<Name extends keyof operations, Status extends keyof operations[Name]["responses"]> =
  operations[Name]["responses"][Status] extends { content: { "application/json": infer Body } } ? Body : never;

// Only what a request needs has to be named. With a preset, that is the prompts.
export const short: Bodies["InferenceRequest"] = { preset: "house-style", prompts: [{ prompt: "make it night" }] };
export const long: operations["submit"]["requestBody"]["content"]["application/json"] = {
  model: "qwen_image_edit",
  loras: [{ path: "my_lora_job/my_lora.safetensors" }],
  prompts: [{ prompt: "make it night", size: "input", seed: null }],
  output_format: "png",
  priority: "bulk",
};
// @ts-expect-error: there is no such format
export const wrong: Bodies["InferenceRequest"] = { prompts: [], output_format: "gif" };

// Fields of answers are there, with their types; null is said.
export function left(status: Answer<"get_status", 200>): number {
  const images: string[] = status.finished_images.map((image) => image.url);
  // @ts-expect-error: it may be null
  const position: number = status.queue_position;
  return status.progress.steps - status.progress.steps_done + images.length + position + (status.eta_s ?? 0);
}

export function widths(explanation: Answer<"explain", 200>): number[] {
  return explanation.effective.flatMap((record) => record.control_images.map((image) => image.size[0]));
}

// The images of a request that may not be finished may lack fields.
export function sigmas(result: Bodies["RequestResult"]): number[] {
  return result.metadata.effective.flatMap((record) => record.scheduler?.sigmas ?? []);
}

// The record of an image contains the request that makes it again.
export const again = (record: Bodies["EffectiveRecord"]): Bodies["InferenceRequest"] | undefined => record.request;

export function reason(error: Answer<"submit", 400 | 503>): string {
  return error.detail.error.code;
}

// What an event stream and webhooks send.
export function progress(event: Bodies["StepEvent"], received: webhooks["request_ended"]): number {
  const body: Bodies["EndWebhook"] = received.post.requestBody.content["application/json"];
  return body.type === "request.succeeded" ? 1 : event.step / event.steps;
}
