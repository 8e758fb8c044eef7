/* SPDX-License-Identifier: Apache-2.0
 * Quantizes a checkpoint from a C program: embed_c MODEL CALIB OUTPUT */
#include <stdio.h>
#include <string.h>

#include "slim/slim.h"

static int32_t show(const slim_progress *progress, void *user) {
  (void)user;
  if (progress->warning) fprintf(stderr, "warning: %s\n", progress->warning);
  if (progress->step[0]) printf("%s %lld/%lld %s\n", progress->phase, (long long)progress->done, (long long)progress->steps, progress->step);
  return 0; /* anything else stops the run */
}

int main(int argc, char **argv) {
  char model[4096], calib[4096], output[4096];
  const char *settings[] = {"compression.plugin=awq", "compression.quantization.name=w4a16",
                            "compression.quantization.group_size=64", model, calib, output};
  slim_error error;
  slim_session *session;
  int32_t code;
  if (argc != 4) {
    fprintf(stderr, "usage: %s MODEL CALIB OUTPUT\n", argv[0]);
    return 2;
  }
  snprintf(model, sizeof model, "model.path=%s", argv[1]);
  snprintf(calib, sizeof calib, "dataset.path=%s", argv[2]);
  snprintf(output, sizeof output, "output.path=%s", argv[3]);

  session = slim_session_open(NULL, settings, sizeof settings / sizeof settings[0], &error);
  if (!session) {
    fprintf(stderr, "error %d: %s\n", (int)error.code, error.message);
    return 1;
  }
  code = slim_session_run(session, show, NULL, &error);
  if (code == SLIM_OK) {
    printf("%s", slim_session_text(session));
  } else {
    fprintf(stderr, "error %d: %s\n", (int)code, error.message);
  }
  slim_session_close(session);
  return code == SLIM_OK ? 0 : 1;
}
