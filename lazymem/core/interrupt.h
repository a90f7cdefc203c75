/* Has a signal come that may end a wait (Ctrl-C)?
 *
 * Python notes it where only the GIL lets one look, and whoever holds that may be waiting, in a touch, for the very block that is being
 * fetched here. So a wait that has become long puts a handler in front of the owner's, which notes the signal too and hands it on, until
 * the wait ends. GIL: never needed. Thread: the main one.
 */
#ifndef LAZYMEM_INTERRUPT_H
#define LAZYMEM_INTERRUPT_H

#include <signal.h>

static const int lm_ending_signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
enum { LM_ENDING_SIGNALS = sizeof lm_ending_signals / sizeof lm_ending_signals[0] };
static struct sigaction lm_ending_before[LM_ENDING_SIGNALS];
static volatile sig_atomic_t lm_signal_came;
static int lm_listening;

static void lm_on_ending_signal(int sig, siginfo_t *info, void *ucontext)
{
    int i;
    lm_signal_came = 1;
    for (i = 0; i < LM_ENDING_SIGNALS; i++)
        if (lm_ending_signals[i] == sig) {
            if (lm_ending_before[i].sa_flags & SA_SIGINFO)
                lm_ending_before[i].sa_sigaction(sig, info, ucontext);
            else
                lm_ending_before[i].sa_handler(sig);
        }
}

/* Begin to listen, if that has not been done; has one come since? A signal that nobody handles is not ours to take. */
static int lm_listen_for_signals(void)
{
    struct sigaction now;
    int i;
    for (i = 0; i < LM_ENDING_SIGNALS && !lm_listening; i++) {
        if (sigaction(lm_ending_signals[i], NULL, &now) || now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN ||
            now.sa_sigaction == lm_on_ending_signal)
            continue;
        lm_ending_before[i] = now;
        now.sa_sigaction = lm_on_ending_signal;
        now.sa_flags |= SA_SIGINFO;
        sigaction(lm_ending_signals[i], &now, NULL);
    }
    lm_listening = 1;
    return lm_signal_came != 0;
}

/* Had one come? */
static int lm_stop_listening(void)
{
    struct sigaction now;
    int i, came;
    for (i = 0; i < LM_ENDING_SIGNALS && lm_listening; i++)
        if (sigaction(lm_ending_signals[i], NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) &&
            now.sa_sigaction == lm_on_ending_signal)   /* else somebody has taken it meanwhile */
            sigaction(lm_ending_signals[i], &lm_ending_before[i], NULL);
    lm_listening = 0;
    came = lm_signal_came != 0;
    lm_signal_came = 0;
    return came;
}

#endif
